"""Search of mixtures against the papers' formulas in float64, and what rests when they alternate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.adapt import GumbelMixture
from jaxllm.errors import UserError
from jaxllm.optim import exponentiated_gradient, search_mixture

AXES = {"w": ("embed",), "logits": ("blocks", "mixture")}
LOGITS = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def softmax(x):
    x = np.exp(np.float64(x) - np.max(x, axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("rate", [0.1, 1e4])
def test_exponentiated_gradient_is_gaeas_update(rate):
    slope = np.random.default_rng(1).normal(size=(2, 3))  # the gradient of alpha
    of_logits = jax.grad(lambda logits: jnp.sum(jax.nn.softmax(logits) * slope))(LOGITS)
    optimizer = exponentiated_gradient(rate)
    updates, _ = optimizer.update(of_logits, optimizer.init(LOGITS), LOGITS)
    alpha = softmax(LOGITS)
    centred = slope - (alpha * slope).sum(axis=1, keepdims=True)  # all that logits' gradient knows of it
    expected = alpha * np.exp(np.clip(-rate * centred, -9, 9))
    expected = np.maximum(expected / expected.sum(axis=1, keepdims=True), 1e-5)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(LOGITS + updates), expected, rtol=1e-4)


def test_what_rests_keeps_its_moments():
    optimizer = search_mixture(optax.adam(0.1), optax.adam(0.1), AXES, alternate=True)
    params = {"w": jnp.ones(2), "logits": jnp.asarray(LOGITS)}
    apart = {name: optax.adam(0.1) for name in params}
    states = {name: apart[name].init(params[name]) for name in params}
    state, alone = optimizer.init(params), dict(params)
    for step in range(4):
        gradients = jax.tree.map(lambda x: x + step, params)  # noqa: B023
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        name = "logits" if step % 2 else "w"
        move, states[name] = apart[name].update(alone[name] + step, states[name])
        alone[name] = alone[name] + move
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, alone)


def test_gumbel_draws_each_part_as_often_as_its_weight():
    view, keys = GumbelMixture(AXES, temperature=0.01), jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: view({"w": jnp.ones(2), "logits": LOGITS}, None, key)["logits"])(keys)
    shares = jax.nn.one_hot(jnp.argmax(drawn, axis=-1), 3).mean(axis=0)
    np.testing.assert_allclose(shares, softmax(LOGITS), atol=0.03)  # 4 standard errors
    assert view({"logits": LOGITS}, None, None)["logits"] is LOGITS
    twins = GumbelMixture([("mixture",)] * 2)([jnp.zeros(3)] * 2, None, keys[0])
    assert (twins[0] != twins[1]).all()


def test_a_model_without_a_mixture_is_refused():
    with pytest.raises(UserError, match="no array has an axis named 'mixture'"):
        search_mixture(optax.sgd(1.0), optax.sgd(1.0), {"w": ("embed",)})
