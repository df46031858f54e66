"""Kurtosis over channels against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.interpret import kurtosis, kurtosis_limits

RANDOM = np.random.default_rng(0)
GAUSSIAN = RANDOM.normal(size=(5, 256))
OUTLIER = GAUSSIAN.copy()
OUTLIER[:, 7] = 3000.0

CASES = {
    "gaussian": GAUSSIAN,
    "one channel of 3000": OUTLIER,
    "far from zero": GAUSSIAN + 1e4,
    "tiny": GAUSSIAN * 1e-25,
    "huge": OUTLIER * 1e25,
}


def in_float64(x):
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return (centred**4).mean(-1) / (centred**2).mean(-1) ** 2


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_float64(name):
    x = jnp.asarray(CASES[name], jnp.float32)
    np.testing.assert_allclose(kurtosis(x), in_float64(x), rtol=2e-6)


def test_bfloat16_loses_nothing_but_its_own_rounding():
    x = jnp.asarray(OUTLIER, jnp.bfloat16)
    assert kurtosis(x).dtype == jnp.float32
    np.testing.assert_allclose(kurtosis(x), in_float64(x), rtol=2e-6)


def test_the_axis_is_the_one_asked_for():
    x = jnp.asarray(RANDOM.exponential(size=(4, 64, 3)), jnp.float32)
    np.testing.assert_allclose(kurtosis(x, axis=1), in_float64(np.moveaxis(x, 1, -1)), rtol=2e-6)


@pytest.mark.parametrize("width", [16, 64, 512])
def test_limits_are_those_of_gaussian_vectors_and_of_one_large_channel(width):
    gaussian, most = kurtosis_limits(width)
    vectors = RANDOM.normal(size=(100_000 // width, 16, width))
    means = in_float64(vectors).mean(1)
    error = means.std() / np.sqrt(len(means))
    assert abs(means.mean() - gaussian) < 4 * error
    one_hot = jnp.zeros(width).at[width // 3].set(-5.0)
    assert float(kurtosis(one_hot)) == pytest.approx(most, rel=1e-6)
