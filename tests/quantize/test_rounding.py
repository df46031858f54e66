"""Integer grids against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.quantize import absmax, zeropoint

RANDOM = np.random.default_rng(0)
SCALED = {"normal": RANDOM.normal(size=(6, 50)), "skewed": RANDOM.exponential(size=(6, 50)) + 0.5,
          "negative": -1 - RANDOM.random((6, 50))}  # fmt: skip


def absmax_float64(x, bits, largest):
    top = 2 ** (bits - 1) - 1
    step = largest / top
    return np.clip(np.round(x / step), -top, top) * step


def zeropoint_float64(x, bits):
    least, most = x.min(1, keepdims=True), x.max(1, keepdims=True)
    step = (most - least) / (2**bits - 1)
    zero = np.round(-least / step)
    return (np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero) * step


def mostly_equal(found, expected, step):
    """A quotient next to a half may round the other way in float32: one step off, and rarely."""
    difference = np.abs(np.asarray(found, np.float64) - expected)
    assert (difference > 1e-4 * step).mean() < 0.01
    assert (difference < 1.001 * step).all()


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", SCALED)
def test_absmax_is_the_published_formula(name, bits):
    x = SCALED[name].astype(np.float32).astype(np.float64)
    largest = np.abs(x).max(1, keepdims=True)
    step = largest / (2 ** (bits - 1) - 1)
    found = absmax(jnp.float32(x), bits, jnp.float32(largest))
    mostly_equal(found, absmax_float64(x, bits, largest), step)
    assert (np.abs(found - x) <= 0.5001 * step).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", SCALED)
def test_zeropoint_is_the_published_formula(name, bits):
    x = SCALED[name].astype(np.float32).astype(np.float64)
    least, most = x.min(1, keepdims=True), x.max(1, keepdims=True)
    step = (most - least) / (2**bits - 1)
    found = zeropoint(jnp.float32(x), bits, jnp.float32(least), jnp.float32(most))
    mostly_equal(found, zeropoint_float64(x, bits), step)
    # The zero is rounded too, so that an end of the range may lie half a step beyond the grid.
    assert (np.abs(found - x) <= 1.001 * step).all()
    assert all(len(np.unique(row)) <= 2**bits for row in np.asarray(found))


def test_what_is_on_the_grid_stays():
    integers = jnp.arange(-7.0, 8.0)
    np.testing.assert_array_equal(absmax(integers / 4, 4, jnp.array(7 / 4)), integers / 4)
    integers = jnp.arange(-3.0, 13.0)
    np.testing.assert_array_equal(
        zeropoint(integers / 4, 4, integers.min() / 4, integers.max() / 4), integers / 4
    )


def test_absmax_clips_what_a_fixed_range_does_not_hold():
    found = absmax(jnp.array([-50.0, 2.0, 50.0]), 8, jnp.array(12.7))
    np.testing.assert_allclose(found, [-12.7, 2.0, 12.7], rtol=1e-6)


def test_a_range_without_width_neither_divides_by_zero_nor_moves():
    zeros = jnp.zeros(3)
    np.testing.assert_array_equal(absmax(zeros, 8, jnp.array(0.0)), zeros)
    equal = jnp.full(3, 0.37)
    np.testing.assert_array_equal(zeropoint(equal, 4, equal.min(), equal.max()), equal)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_kept(dtype):
    x = jnp.asarray(SCALED["normal"], dtype)
    largest = jnp.max(jnp.abs(x))
    found = absmax(x, 8, largest)
    assert found.dtype == x.dtype
    wide = absmax(x.astype(jnp.float32), 8, largest.astype(jnp.float32))
    np.testing.assert_array_equal(found, wide.astype(dtype))
    assert zeropoint(x, 4, jnp.min(x), largest).dtype == x.dtype
