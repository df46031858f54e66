"""Capturing and editing activations at named sites."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.models import SITES, Sites
from jaxllm.models.norms import normalize
from jaxllm.models.sites import Tap
from tests.models.random_params import random_params

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 9))


@pytest.fixture(scope="module", params=["gpt-neo-nano", "llama-nano"])
def model(request):
    config = models.get_preset(request.param, num_layers=4, embed_dim=32, num_heads=4)
    return config, random_params(config)


@pytest.fixture(scope="module")
def values(model):
    """Return (hidden, every site of the model)."""
    config, params = model
    run = jax.jit(lambda p: models.capture(config, p, TOKENS, Sites(capture=SITES)))
    return run(params)


def close(a, b):
    assert a.shape == b.shape
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 2e-5


def test_captured_values_are_what_the_table_says(model, values):
    config, params = model
    hidden, seen = values
    assert set(seen) == set(SITES)
    H, K = config.num_heads, config.head_dim
    assert seen["attn_probs"].shape == (4, 2, H, 9, 9)
    assert seen["key"].shape == (4, 2, 9, config.num_kv_heads, K)
    attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
    close(seen["final"], hidden)
    close(seen["resid_pre"][0], seen["embed"])
    close(seen["resid_pre"][1:], seen["resid_post"][:-1])
    close(seen["resid_mid"], seen["resid_pre"] + seen["attn_out"])
    close(seen["resid_post"], seen["resid_mid"] + seen["mlp_out"])
    for i in range(4):
        norm = jax.tree.map(lambda w: w[i], params["layers"]["attn_norm"])  # noqa: B023
        close(
            seen["attn_in"][i], normalize(seen["resid_pre"][i], norm, config.norm, config.norm_eps)
        )
    repeat = H // config.num_kv_heads
    key, value = (np.repeat(seen[name], repeat, axis=3) for name in ("key", "value"))
    scale = config.attention_scale or K**-0.5
    close(seen["attn_scores"], scale * np.einsum("lbthk,lbshk->lbhts", seen["query"], key))
    allowed = np.tril(np.ones((9, 9), bool))
    weight = np.where(allowed, np.exp(seen["attn_scores"]), 0)
    close(seen["attn_probs"], weight / weight.sum(-1, keepdims=True))
    close(seen["head_out"], np.einsum("lbhts,lbshk->lbthk", seen["attn_probs"], value))
    out = np.einsum("lbthk,lhkd->lbtd", seen["head_out"], attn["out"])
    close(seen["attn_out"], out + (attn["out_bias"][:, None, None] if config.out_bias else 0))
    out = np.einsum("lbtf,lfd->lbtd", seen["mlp_hidden"], mlp["out"])
    close(seen["mlp_out"], out + (mlp["out_bias"][:, None, None] if config.mlp_bias else 0))


def test_the_explicit_attention_path_computes_the_same_model(model, values):
    config, params = model
    close(values[0], jax.jit(lambda p: models.trunk(config, p, TOKENS))(params))


def test_an_edit_changes_what_comes_after_and_nothing_before(model, values):
    config, params = model
    _, before = values

    def ablate_layer_2(value, layer):
        return jnp.where(layer == 2, 0.0, value)

    sites = Sites(capture=SITES, edits={"mlp_hidden": ablate_layer_2})
    _, after = jax.jit(lambda p: models.capture(config, p, TOKENS, sites))(params)
    assert np.all(np.asarray(after["mlp_hidden"][2]) == 0)
    close(after["resid_post"][:2], before["resid_post"][:2])
    close(after["resid_mid"][2], before["resid_mid"][2])
    assert np.abs(after["resid_post"][2] - before["resid_post"][2]).max() > 1e-2
    assert np.abs(after["attn_in"][3] - before["attn_in"][3]).max() > 1e-3


def test_every_site_can_be_edited_and_differentiated_through(model):
    config, params = model

    def total(strengths):
        def scaled(value, layer, strength):
            return value * (1 + strength * jnp.cos(jnp.arange(value.shape[-1])))

        edits = {
            site: functools.partial(scaled, strength=strength)
            for site, strength in zip(SITES, strengths, strict=True)
        }
        hidden = models.trunk(config, params, TOKENS, sites=Sites(edits=edits))
        return jnp.sum(hidden**2 * jnp.arange(32))

    gradient = jax.jit(jax.grad(total))(jnp.zeros(len(SITES)))
    assert np.isfinite(gradient).all()
    assert (abs(gradient) > 1e-2).all(), dict(zip(SITES, gradient, strict=True))


def test_what_is_kept_of_each_layer_is_what_keep_makes_of_it(model, values):
    config, params = model
    _, seen = values

    def keep(captured, layer):
        return {"largest": {name: jnp.max(value) for name, value in captured.items()}, "layer": layer}

    sites = Sites(capture=("embed", "query", "mlp_out"), keep=keep)
    _, kept = jax.jit(lambda p: models.capture(config, p, TOKENS, sites))(params)
    close(kept["embed"], seen["embed"])
    assert set(kept) == {"embed", "largest", "layer"} and set(kept["largest"]) == {"query", "mlp_out"}
    assert kept["layer"].tolist() == [0, 1, 2, 3]
    for name, value in kept["largest"].items():
        close(value, seen[name].reshape(4, -1).max(1))


def test_edited_attention_weights_move_information(model):
    config, params = model

    def look_at_the_first_token_only(probs_BHTS, layer):
        return jnp.zeros_like(probs_BHTS).at[..., 0].set(1.0)

    sites = Sites(capture=("head_out", "value"), edits={"attn_probs": look_at_the_first_token_only})
    _, seen = jax.jit(lambda p: models.capture(config, p, TOKENS, sites))(params)
    first = np.repeat(seen["value"], config.num_heads // config.num_kv_heads, axis=3)[:, :, :1]
    close(seen["head_out"], np.broadcast_to(first, seen["head_out"].shape))


@pytest.mark.smoke
@pytest.mark.parametrize("remat", ["none", "full"])
def test_unused_sites_leave_no_trace_in_the_program(monkeypatch, remat):
    config = models.get_preset("gpt2-nano", remat=remat)
    shapes = models.shapes(config)

    def program(sites):
        step = jax.value_and_grad(lambda p: jnp.sum(models.trunk(config, p, TOKENS, sites=sites)))
        return jax.jit(step).lower(shapes).as_text()

    off, empty = program(None), program(Sites())
    some = program(Sites(capture=("mlp_hidden",), edits={"mlp_hidden": lambda v, layer: v * 2}))
    monkeypatch.setattr(Tap, "__call__", lambda self, name, value: value)
    untapped = program(None)
    assert off == empty == untapped
    assert off != some


def test_wrong_names_and_wrong_edits_are_refused():
    with pytest.raises(UserError, match="did you mean 'resid_post'"):
        Sites(edits={"resid_posst": lambda v, layer: v})
    with pytest.raises(UserError, match="must be a tuple"):
        Sites(capture="resid_post")
    config = models.get_preset("gpt2-nano")
    sites = Sites(edits={"mlp_out": lambda v, layer: v[:, :1]})
    with pytest.raises(UserError, match=r"site 'mlp_out' returned float32\[2, 1, 64\]"):
        jax.eval_shape(lambda p: models.trunk(config, p, TOKENS, sites=sites), models.shapes(config))
