"""No rows, no tokens, no keys: an empty result with a zero gradient, or one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxllm_kernels.attention import attention_with_lse
from jaxllm_kernels.grouped_cross_entropy import GroupedWeights, grouped_cross_entropy
from jaxllm_kernels.linear_cross_entropy import linear_cross_entropy, token_log_probs

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.interpret import activation_statistics
from jaxllm.quantize import activation_ranges
from tests.models.random_params import random_params

IMPLEMENTATIONS = (None, "reference", "xla")
CONFIG = models.get_preset("llama-nano", vocab_size=32)
PARAMS = random_params(CONFIG)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("B, T, S", [(0, 5, 5), (2, 0, 0), (2, 0, 5), (2, 3, 0)])
def test_attention_without_rows_queries_or_keys(B, T, S, implementation):
    query, key = np.ones((B, T, 4, 8), np.float32), np.ones((B, S, 2, 8), np.float32)

    def run(query, key, sink):
        return attention_with_lse(query, key, key, causal=False, sink=sink, implementation=implementation)

    @jax.jit
    def computed(query, key):
        gradients = jax.grad(lambda q, k: run(q, k, None)[0].sum(), (0, 1))(query, key)
        return run(query, key, None), run(query, key, 0.5)[1], gradients

    (out, lse), sunk, gradients = jax.device_get(computed(query, key))
    np.testing.assert_array_equal(out, np.zeros((B, T, 4, 8)))
    np.testing.assert_array_equal(lse, np.full((B, 4, T), -np.inf))
    np.testing.assert_array_equal(sunk, np.full((B, 4, T), 0.5))  # the sink alone is seen
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
def test_cross_entropy_of_no_token_is_zero(shape, implementation):
    labels = np.zeros(shape, int)

    @jax.jit
    def computed(hidden, weights):
        total = lambda *x: linear_cross_entropy(*x, labels, implementation=implementation).total
        log_probs = token_log_probs(hidden, weights, labels, implementation=implementation)
        return jax.value_and_grad(total, (0, 1))(hidden, weights), log_probs

    hidden, weights = np.ones((*shape, 4), np.float32), np.ones((4, 8), np.float32)
    (value, gradients), log_probs = jax.device_get(computed(hidden, weights))
    assert value == 0 and gradients[0].shape == hidden.shape
    np.testing.assert_array_equal(gradients[1], np.zeros((4, 8)))
    assert all(values.shape == shape for values in log_probs)


@pytest.mark.parametrize("own", [True, False])
def test_grouped_cross_entropy_of_no_token_is_zero(own):
    weights = GroupedWeights(jnp.ones((4, 3)), jnp.ones(3), jnp.ones((3, 5, 4) if own else (4, 5)))
    labels = jnp.zeros((2, 0), int)

    def total(weights):
        hidden, sizes = jnp.ones((2, 0, 4)), jnp.full(3, 5)
        return grouped_cross_entropy(hidden, weights, labels, labels, sizes, scale="none").total

    value, gradients = jax.device_get(jax.jit(jax.value_and_grad(total))(weights))
    assert value == 0 and not any(g.any() for g in gradients if g is not None)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_a_model_of_no_token(shape):
    tokens = np.zeros(shape, int)

    @jax.jit
    def computed(params):
        sites = models.Sites(capture=("resid_post",))
        logits, seen = models.apply(CONFIG, params, tokens), models.capture(CONFIG, params, tokens, sites)[1]
        return logits, seen, jax.value_and_grad(lambda p: models.loss(CONFIG, p, tokens, tokens)[0])(params)

    logits, seen, (value, gradients) = jax.device_get(computed(PARAMS))
    assert logits.shape == (*shape, 32)
    assert seen["resid_post"].shape == (CONFIG.num_layers, *shape, CONFIG.embed_dim)
    assert value == 0 and not any(g.any() for g in jax.tree.leaves(gradients))
    with pytest.raises(UserError, match="holds no token; leave it out"):
        activation_statistics(CONFIG, PARAMS, [{"tokens": tokens}])
    with pytest.raises(UserError, match="holds no token; leave it out"):
        activation_ranges(CONFIG, PARAMS, [{"tokens": tokens}])
    with pytest.raises(UserError, match="hold no token; give at least one"):
        Decoder(CONFIG, PARAMS).prefill(tokens, slots=8)


def test_what_has_no_meaning_is_refused():
    one = jnp.ones((2, 3, 2, 4))
    with pytest.raises(ValueError, match="have no heads"):
        attention_with_lse(one[:, :, :0], one[:, :, :0], one[:, :, :0])
    with pytest.raises(ValueError, match="heads without channels"):
        attention_with_lse(one[..., :0], one[..., :0], one[..., :0])
    with pytest.raises(ValueError, match="at least one column"):
        linear_cross_entropy(jnp.ones((2, 4)), jnp.ones((4, 0)), jnp.zeros(2, int))
