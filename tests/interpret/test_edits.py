"""Edits of rows and of attention, against what NumPy says they change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.interpret import head_mask, shift_row, swap_attention
from tests.models.random_params import random_params

B, T = 2, 7
TOKENS = np.random.default_rng(1).integers(0, 256, (B, T))


def model(family, scale=0.2):
    config = models.get_preset(family)
    return config, random_params(config, scale)


def seen(config, params, *names, **edits):
    sites = models.Sites(names, **edits)
    return jax.jit(lambda p: models.capture(config, p, TOKENS, sites)[1])(params)


@pytest.mark.parametrize("family", ["gpt2-nano", "llama-nano", "pythia-nano"])
def test_a_shifted_row_writes_its_coefficient_times_the_shift(family):
    """In the last layer nothing else changes, and of negative coefficients the effect is the opposite."""
    config, params = model(family)
    layer, shift = config.num_layers - 1, np.random.default_rng(2).normal(size=config.embed_dim)
    before = np.asarray(params["layers"]["mlp"]["out"])
    hidden_BTF = np.asarray(seen(config, params, "mlp_hidden")["mlp_hidden"][layer], np.float64)
    row = int(np.argmax(np.minimum(hidden_BTF.max((0, 1)), -hidden_BTF.min((0, 1)))))
    edited = shift_row(config, params, layer, row, shift)
    one, other = (
        np.asarray(seen(config, p, "resid_post")["resid_post"], np.float64) for p in (params, edited)
    )
    k_BT = hidden_BTF[..., row]
    assert k_BT.min() < 0 < k_BT.max()
    np.testing.assert_allclose(other[layer] - one[layer], k_BT[..., None] * shift, atol=2e-5)
    np.testing.assert_array_equal(other[:layer], one[:layer])
    np.testing.assert_array_equal(params["layers"]["mlp"]["out"], before)  # functional
    assert edited["layers"]["attn"] is params["layers"]["attn"]


def attention(config, params, layer, probs, value):
    """Return what heads mix from given weights, through the output projection, in float64."""
    value = np.repeat(value, config.num_heads // config.num_kv_heads, axis=2)
    mix = np.einsum("bhts,bshk->bthk", probs, value)
    out = np.einsum("bthk,hkd->btd", mix, np.asarray(params["layers"]["attn"]["out"][layer], np.float64))
    return out + np.asarray(params["layers"]["attn"].get("out_bias", np.zeros((9, 1)))[layer], np.float64)


@pytest.mark.parametrize("family", ["gpt2-nano", "llama-nano", "gpt-neo-nano"])
def test_swapped_heads_mix_values_by_the_other_weights(family):
    config, params = model(family, scale=0.1)  # at 0.2 a head attends to one token alone
    query, one, other = np.array([6, 5]), np.array([1, 2]), np.array([3, 4])
    layer, head = config.num_layers - 1, 1
    plain = {n: np.asarray(x, np.float64) for n, x in seen(config, params, "attn_probs", "value").items()}
    edits = swap_attention(head_mask(config, [(layer, head)]), query, one, other)
    swapped = seen(config, params, "attn_probs", "attn_out", edits=edits)
    expected = plain["attn_probs"].copy()
    for text in range(B):
        row = expected[layer, text, head, query[text]]
        row[[one[text], other[text]]] = row[[other[text], one[text]]]
    assert np.abs(expected - plain["attn_probs"]).max() > 1e-3
    np.testing.assert_allclose(swapped["attn_probs"], expected, atol=1e-6)
    np.testing.assert_allclose(swapped["attn_probs"].sum(-1), 1, atol=1e-5)
    by_hand = attention(config, params, layer, expected[layer], plain["value"][layer])
    np.testing.assert_allclose(swapped["attn_out"][layer], by_hand, atol=2e-5)


def test_no_heads_and_exchanged_weighted_values_change_nothing():
    """A head sums over positions: exchanging whole terms of the sum is the identity (the spec's pitfall)."""
    config, params = model("gpt2-nano")
    query, one, other = np.full(B, 6), np.full(B, 1), np.full(B, 3)
    nothing = swap_attention(head_mask(config, []), query, one, other)
    plain = models.trunk(config, params, TOKENS)
    np.testing.assert_allclose(
        models.trunk(config, params, TOKENS, sites=models.Sites(edits=nothing)), plain, atol=2e-6
    )
    everything = jnp.ones((config.num_layers, config.num_heads), bool)
    swap = swap_attention(everything, query, one, other)

    def exchange(value_BTGK, layer):
        order = np.arange(T)
        order[[1, 3]] = 3, 1
        return value_BTGK[:, order]

    last = {"attn_probs": swap["attn_probs"], "value": exchange}
    both = seen(config, params, "head_out", edits=last)["head_out"][0, :, 6]
    np.testing.assert_allclose(both, seen(config, params, "head_out")["head_out"][0, :, 6], atol=1e-6)
    alone = seen(config, params, "head_out", edits=swap)["head_out"][0, :, 6]
    assert np.abs(alone - both).max() > 1e-3


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            lambda c, p: shift_row(c, p, 2, 0, np.zeros(64)),
            "layer is 2; the model has 2, so it must be from 0 to 1",
        ),
        (lambda c, p: shift_row(c, p, -1, 0, np.zeros(64)), "layer is -1"),
        (lambda c, p: shift_row(c, p, 0, 256, np.zeros(64)), "row is 256; the model has 256"),
        (lambda c, p: shift_row(c, p, 0, 1.5, np.zeros(64)), "row is 1.5"),
        (lambda c, p: shift_row(c, p, 0, 0, np.zeros(63)), r"shift_D has shape \(63,\); it must be \(64,\)"),
        (lambda c, p: head_mask(c, [(0, 2)]), "head is 2; the model has 2"),
        (lambda c, p: head_mask(c, [(2, 0)]), "layer is 2"),
        (
            lambda c, p: head_mask(models.get_preset("mamba-nano"), []),
            "an edit of attention is of transformers",
        ),
    ],
)
def test_an_edit_outside_the_model_is_told_in_one_sentence(edit, said):
    with pytest.raises(UserError, match=said):
        edit(*model("gpt2-nano"))
