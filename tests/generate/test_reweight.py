"""Steps of two models against their formulas in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.generate import Suppress, contrast, steer, suppression
from jaxllm.generate.reweight import DECAYS

B, V = 3, 50
rng = np.random.default_rng(0)


def distributions(count):
    logits = 2.0 * rng.normal(size=(count, B, V))
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def factor(decay, delta, strength, floor):
    return {
        "exponential": np.maximum(floor, np.exp(-strength * delta)),
        "linear": np.maximum(floor, 1 - strength * delta),
        "power": (1 + delta) ** -strength,
        "hard": np.where(delta > strength, floor, 1.0),
    }[decay]


def suppressed(decay, log_p, log_q, strength, floor, temperature=1.0):
    """Return p~ [B, V] by the spec's three lines."""
    q = np.exp(log_q / temperature)
    q = (q / q.sum(axis=-1, keepdims=True)).max(axis=0)
    p = np.exp(log_p)
    alpha = factor(decay, np.maximum(0, q - p), *(np.reshape(x, (-1, 1)) for x in (strength, floor)))
    return alpha * p / (alpha * p).sum(axis=-1, keepdims=True)


def call(step, log_p, log_q, state):
    return np.float64(jax.jit(step)(jnp.float32(log_p), jnp.float32(log_q), state))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_suppression_is_its_formula(decay, floor, models, temperature):
    log_p, *log_q = distributions(1 + models)
    strength = np.array([0.05, 0.2, 0.01]) if decay == "hard" else np.array([0.7, 5.0, 200.0])
    log_q = np.array(log_q)
    expected = suppressed(decay, log_p, log_q, strength, floor, temperature)
    found = np.exp(call(Suppress(decay), log_p, log_q, suppression(strength, floor, temperature)))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=2e-6)
    changed = np.abs(expected - np.exp(log_p)).max(axis=1)
    assert changed.max() > 0.002  # the formula does something here


def test_the_log_keeps_its_digits_where_nearly_everything_is_removed_and_where_nearly_nothing_is():
    p = np.array([[1 - 1e-3, 1e-3], [1 - 1e-7, 1e-7], [0.5, 0.5]])
    q = np.array([[[1.0, 1e-9], [1 - 1e-7, 1e-7], [0.5, 0.5]]])
    log_p, log_q = np.log(np.float32(p)), np.log(np.float32(q))
    found = call(Suppress("hard"), log_p, log_q, suppression(1e-4, 0.0))
    np.testing.assert_allclose(found[0], [-np.inf, 0], atol=1e-6)
    np.testing.assert_array_equal(found[1:], np.float64(log_p[1:]))


@pytest.mark.parametrize("decay", DECAYS)
def test_models_that_coincide_change_nothing_at_all(decay):
    log_p = np.float32(distributions(1)[0])
    log_p[0, 3] = -np.inf
    log_p[0] -= np.log(np.exp(log_p[0]).sum())
    np.testing.assert_array_equal(call(Suppress(decay), log_p, log_p[None], suppression(500.0, 0.0)), log_p)
    same = call(steer, log_p, log_p[None], 2.0)
    np.testing.assert_allclose(np.exp(same), np.exp(np.float64(log_p)), atol=1e-6)


def test_a_strength_of_zero_changes_nothing():
    log_p, *log_q = np.float32(distributions(3))
    for decay in ("exponential", "linear", "power"):
        np.testing.assert_array_equal(call(Suppress(decay), log_p, np.array(log_q), suppression(0.0)), log_p)
    for step in (steer, contrast):
        np.testing.assert_allclose(call(step, log_p, np.array(log_q), 0.0), log_p, atol=1e-5)


def test_a_floor_of_zero_removes_tokens_and_leaves_finite_numbers():
    log_p, log_q = distributions(2)
    found = call(Suppress("linear"), log_p, log_q[None], suppression(1e6, 0.0))
    removed = np.exp(log_q) > np.exp(log_p) + 1e-5
    assert (found[removed] == -np.inf).all() and removed.any()
    assert not np.isnan(found).any() and np.isfinite(found.max(axis=-1)).all()


def test_several_models_that_exceed_p_everywhere_leave_p():
    p, q = np.array([[0.5, 0.5]]), np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
    found = call(Suppress("hard"), np.log(p), np.log(q), suppression(0.1, 0.0))
    np.testing.assert_array_equal(found, np.log(np.float32(p)))


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def test_steering_is_dexperts_formula():
    z, expert, anti = distributions(3)
    strength = np.array([0.5, 2.0, 3.0])
    both = softmax(z + strength[:, None] * (expert - anti))
    found = call(steer, z, np.array([expert, anti]), jnp.float32(strength))
    np.testing.assert_allclose(np.exp(found), both, atol=2e-6)
    alone = softmax((1 + strength[:, None]) * z - strength[:, None] * anti)
    np.testing.assert_allclose(np.exp(call(steer, z, anti[None], strength)), alone, atol=2e-6)


def test_contrast_is_a_difference_of_log_probabilities_on_what_is_plausible():
    log_p, log_q = distributions(2)
    log_p[log_p < log_p.max(axis=-1, keepdims=True) + np.log(0.1)] = -np.inf
    found = call(contrast, log_p, log_q[None], 1.0)
    np.testing.assert_allclose(np.exp(found), softmax(log_p - log_q), atol=2e-6)


@pytest.mark.parametrize("step, state", [(Suppress(), suppression(50.0)), (steer, 2.0), (contrast, 1.0)])
def test_what_p_excludes_stays_excluded(step, state):
    log_p, log_q = distributions(2)
    log_p[:, ::2] = -np.inf
    log_q[:, ::4] = -np.inf
    found = call(step, log_p, log_q[None], state)
    assert (found[:, ::2] == -np.inf).all() and np.isfinite(found[:, 1::2]).all()


def test_one_batch_holds_rows_of_different_strengths_as_if_each_were_alone():
    log_p, log_q = np.float32(distributions(2))
    strengths = np.array([0.0, 5.0, 100.0])
    together = call(Suppress(), log_p, log_q[None], suppression(strengths))
    for row, strength in enumerate(strengths):
        alone = call(Suppress(), log_p[row : row + 1], log_q[None, row : row + 1], suppression(strength))
        np.testing.assert_allclose(together[row], alone[0], atol=1e-6)


def test_values_that_mean_nothing_are_refused():
    for make, message in [
        (lambda: Suppress("cubic"), "cubic"),
        (lambda: suppression(-1.0), "strength is -1"),
        (lambda: suppression(floor=1.5), "floor is 1.5; it must be 0 to 1"),
        (lambda: suppression(temperature=[1.0, 0.0]), "temperature is 0"),
        (lambda: suppression(float("nan")), "strength is nan"),
        (lambda: suppression(float("inf")), r"strength is inf; it must be 0 to 1e\+06"),
        (lambda: suppression(temperature=float("inf")), "temperature is inf"),
        (lambda: steer(jnp.zeros((1, 2)), jnp.zeros((3, 1, 2)), 1.0), "3 distributions to steer by"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
