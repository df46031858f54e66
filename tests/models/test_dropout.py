"""Dropout: what is dropped, that nothing is without a key, and that it costs nothing when it is off."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.models import dropout as module
from jaxllm.models.dropout import dropout, dropped_attention
from jaxllm.text import TrainConfig
from jaxllm.text.task import next_token_loss
from tests.models.random_params import random_params

# Float32 against float64.
TOLERANCE = 1e-5
PLAIN = models.get_preset("gpt2-nano", vocab_size=37, embed_dim=24, num_heads=3, mlp_dim=20)
DROPPING = dataclasses.replace(PLAIN, dropout=0.3)
TOKENS = np.random.default_rng(0).integers(0, 37, (4, 9))
KEY = jax.random.key(5)


def loss_text(config, key):
    def loss(params, key):
        return models.loss(config, params, TOKENS, TOKENS, key=key)[0]

    return jax.jit(jax.grad(loss)).lower(models.shapes(config), key).as_text()


def test_off_it_is_the_same_program():
    assert loss_text(DROPPING, None) == loss_text(PLAIN, None)
    assert "threefry" in loss_text(DROPPING, KEY) and "threefry" not in loss_text(PLAIN, KEY)
    assert loss_text(DROPPING, KEY) != loss_text(DROPPING, None)


def test_a_rate_of_the_numbers_is_zero_and_the_mean_stays():
    x = jnp.ones((200, 300), jnp.bfloat16)
    y = dropout(x, 0.3, KEY)
    assert y.dtype == x.dtype
    assert abs(float(jnp.mean(y == 0)) - 0.3) < 0.01  # of 60,000: 5 standard deviations
    assert abs(float(jnp.mean(y.astype(jnp.float32))) - 1) < 0.01
    assert set(np.unique(np.float32(y))) == {0.0, np.float32(jnp.bfloat16(1 / 0.7))}


@pytest.mark.parametrize("causal_parts", [dict(), dict(window=3, segments=True, sink=0.5)])
def test_attention_drops_probabilities_after_the_softmax(causal_parts, monkeypatch):
    """Against float64 with the masks that the key gives; in blocks of 4 queries of 11."""
    monkeypatch.setattr(module, "_QUERIES", 4)
    B, T, H, G, K, rate = 2, 11, 4, 2, 6, 0.4
    draw = np.random.default_rng(1)
    q, k, v = (draw.normal(size=(B, T, n, K)).astype(np.float32) for n in (H, G, G))
    window, sink = causal_parts.get("window", 0), causal_parts.get("sink", -np.inf)
    segments = np.sort(draw.integers(0, 2, (B, T))) if causal_parts.get("segments") else None
    masks = np.zeros((B, H, T, T))
    for begin in range(0, T, 4):
        end = min(begin + 4, T)
        kept = jax.random.bernoulli(jax.random.fold_in(KEY, begin), 1 - rate, (B, H, end - begin, end))
        masks[:, :, begin:end, :end] = kept

    expected = np.zeros((B, T, H, K))
    for b, h, t in np.ndindex(B, H, T):
        seen = [
            s for s in range(t + 1)
            if (not window or t - s < window) and (segments is None or segments[b, s] == segments[b, t])
        ]  # fmt: skip
        weights = np.exp([np.float64(q[b, t, h]) @ k[b, s, h // 2] * K**-0.5 for s in seen])
        weights = weights / (weights.sum() + np.exp(sink)) * masks[b, h, t, seen] / (1 - rate)
        expected[b, t, h] = weights @ np.float64(v[b, seen, h // 2])

    def attend(q, k, v):
        return dropped_attention(
            q, k, v, rate, KEY, scale=K**-0.5, sink=sink, causal=True, window=window,
            segment_ids_BT=None if segments is None else jnp.asarray(segments), mask_BTS=None,
        )  # fmt: skip

    ours = jax.jit(attend)(q, k, v)
    assert np.abs(ours - expected).max() <= TOLERANCE


@functools.partial(jax.jit, static_argnums=0)
def trained(config, params, key):
    """Return the loss and its gradients."""
    return jax.value_and_grad(lambda p: models.loss(config, p, TOKENS, TOKENS, key=key)[0])(params)


def test_a_key_decides_what_is_dropped_and_recomputing_draws_it_again():
    params = random_params(DROPPING)
    value, grads = trained(DROPPING, params, KEY)
    assert float(value) != float(trained(DROPPING, params, None)[0])
    assert float(value) != float(trained(DROPPING, params, jax.random.key(6))[0])
    again, recomputed = trained(dataclasses.replace(DROPPING, remat="full"), params, KEY)
    assert abs(float(again) - float(value)) <= 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, recomputed)


def test_layers_and_microbatches_draw_their_own():
    """Of equal rows every microbatch drops other numbers, as every layer does."""
    tokens = np.broadcast_to(TOKENS[:1], (4, 9))

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def seen(params, sites, microbatches=1):
        options = dict(key=KEY, microbatches=microbatches)
        return models.capture(DROPPING, params, tokens, models.Sites(sites), **options)[1]

    params = random_params(DROPPING)
    for microbatches in (1, 2):
        first = np.asarray(seen(params, ("attn_out",), microbatches)["attn_out"][0])
        for row in range(1, 4):
            assert np.abs(first[0] - first[row]).max() > 1e-3
    stream = jax.device_get(seen(params, ("resid_pre", "resid_mid")))
    dropped = stream["resid_mid"] == stream["resid_pre"]
    assert 0.2 < dropped.mean() < 0.4
    assert (dropped[0] != dropped[1]).any()


def test_a_run_drops_in_training_and_not_in_an_evaluation():
    config = TrainConfig(model=dataclasses.replace(DROPPING, dropout=0.5), seq_len=9, batch_size=4)
    loss, params = next_token_loss(config), random_params(DROPPING)
    batch = {"tokens": TOKENS, "targets": TOKENS, "mask": np.ones((4, 9))}
    batch["segment_ids"] = np.zeros((4, 9), int)

    @jax.jit
    def losses(params):
        plain = models.loss(PLAIN, params, TOKENS, TOKENS)[0]
        return plain, loss(params, batch, None)[0], loss(params, batch, KEY)[0]

    plain, evaluated, trained = map(float, losses(params))
    assert evaluated == pytest.approx(plain, abs=1e-6)
    assert trained != pytest.approx(plain, abs=1e-6)
