"""Stochastic rounding: unbiased, exact where it can be, and its random words as good as they must be."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jaxllm_kernels.adamw_update import fold_in, random_words, stochastic_round

NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
GENERATORS = ["hash", "threefry"]
SEED = jnp.array([2024, 7], jnp.uint32)


def all_values(dtype):
    """Return every value of a narrow type."""
    width = jnp.dtype(dtype).itemsize * 8
    return np.arange(2**width, dtype=f"uint{width}").view(jnp.dtype(dtype))


def finite_grid(dtype):
    values = all_values(dtype)
    return np.unique(values[np.isfinite(values)].astype(np.float64))


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("word", [0, 0xFFFF, 0xFFFFFFFF])
def test_every_value_of_the_type_stays_itself(dtype, word):
    """Zeros keep their sign, subnormals, infinities and NaN survive."""
    values = all_values(dtype)
    x = jnp.asarray(values.astype(np.float32))
    rounded = jax.jit(lambda x: stochastic_round(x, jnp.full(x.shape, word, jnp.uint32), dtype))(x)
    as_words = f"uint{values.dtype.itemsize * 8}"
    number = ~np.isnan(values.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(np.asarray(rounded).astype(np.float32)), ~number)
    ours, theirs = np.asarray(rounded).view(as_words), values.view(as_words)
    np.testing.assert_array_equal(ours[number], theirs[number])


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FC00000])
def test_every_nan_stays_nan(payload):
    x = np.array([payload], np.uint32).view(np.float32)
    for word in (0, 1, 0xFFFF):
        assert jnp.isnan(stochastic_round(jnp.asarray(x), jnp.full(1, word, jnp.uint16)))[0]


@pytest.mark.parametrize("dtype", NARROW)
def test_probability_is_the_fraction_for_every_one_of_the_bits(dtype):
    """All 2**16 words (for 8-bit types: 2**16 evenly spaced ones) on values between neighbours: the
    number rounded up is the fraction itself, so the rounding has no bias at all."""
    grid = finite_grid(dtype)
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(grid) - 1, 60)
    middle = len(grid) // 2  # next to zero: subnormals
    index = np.concatenate([index, [0, len(grid) - 2, middle, middle - 1, middle + 3]])
    low, high = grid[index], grid[index + 1]
    resolution = 2**13 if dtype == "float16" else 2**16  # of the bits of float32 that fall away
    fractions = rng.integers(1, resolution, len(index)) / resolution
    x = (low + fractions * (high - low)).astype(np.float32)
    if dtype == "bfloat16":  # below, float32 itself is too coarse; those have a test of their own
        keep = np.abs(x) > 2.0**-110
        x, low, high, fractions = x[keep], low[keep], high[keep], fractions[keep]
    words = jnp.arange(2**16, dtype=jnp.uint32)
    if jnp.dtype(dtype).itemsize == 1:
        words = words << 16
    every = jax.vmap(lambda word: stochastic_round(jnp.asarray(x), jnp.full(x.shape, word), dtype))
    rounded = jax.jit(every)(words)
    rounded = np.asarray(rounded).astype(np.float64)
    assert np.all((rounded == low) | (rounded == high))
    np.testing.assert_array_equal(np.mean(rounded == high, axis=0), fractions)


def test_float32_subnormals_are_rounded_as_integers():
    words = np.array([0x00000001, 0x00008000, 0x0000FFFF, 0x80012345], np.uint32)
    rounded = stochastic_round(jnp.asarray(words.view(np.float32)), jnp.full(4, 0x8000, jnp.uint16))
    expected = ((words + np.uint32(0x8000)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(np.asarray(rounded).view(np.uint16), expected)


@pytest.mark.smoke
@pytest.mark.parametrize("generator", GENERATORS)
def test_mean_of_many_draws_is_the_value(generator):
    """64 values, 100,000 draws each: within 5 standard errors, variance p(1-p) of a step squared."""
    x = np.random.default_rng(1).normal(size=64).astype(np.float32)
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    high = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    p = (x - low) / (high - low)

    @functools.partial(jax.jit, static_argnums=1)
    def drawn(seed, upper):
        words = random_words(seed, (100_000, 64), generator)
        return stochastic_round(jnp.broadcast_to(x, words.shape), words >> 16 if upper else words & 0xFFFF)

    for upper in (False, True):
        draws = np.asarray(drawn(SEED, upper)).astype(np.float64)
        z = (draws.mean(0) - x) / (np.abs(high - low) * np.sqrt(p * (1 - p) / 100_000))
        assert np.abs(z).max() < 5
        assert np.mean(z**2) == pytest.approx(1, abs=5 * np.sqrt(2 / 64))


def test_threefry_words_are_those_of_jax_random():
    key = jax.random.wrap_key_data(SEED, impl="threefry2x32")
    with jax.threefry_partitionable(True):
        expected = jax.random.bits(key, (37, 5), jnp.uint32)
    np.testing.assert_array_equal(random_words(SEED, (37, 5), "threefry"), expected)


# Threefry's words are jax.random's, by the test above.
@pytest.mark.parametrize("generator", ["hash", pytest.param("threefry", marks=pytest.mark.slow)])
def test_words_are_uniform(generator):
    """Chi-squared of every byte of a million words: within 5 standard deviations."""
    words = np.asarray(random_words(SEED, (1000, 1000), generator)).ravel()
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift) & 0xFF, minlength=256)
        chi2 = np.sum((counts - words.size / 256) ** 2) / (words.size / 256)
        assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255), shift


def pairs_of_words(generator):
    """Return arrays of words that must not be correlated, one pair for each way they might be."""
    n = 2**16

    def draw(seed, shape=(n,)):
        return np.asarray(random_words(seed, shape, generator)).ravel()

    base = fold_in(fold_in(SEED, 1), 0)
    here = draw(base)
    yield "neighbouring elements", here[1:], here[:-1]
    for stride in (128, 768, 1024, 4096):
        yield f"elements {stride} apart", here[stride:], here[:-stride]
    yield "next step", here, draw(fold_in(fold_in(SEED, 2), 0))
    yield "next parameter", here, draw(fold_in(fold_in(SEED, 1), 1))
    exchanged = fold_in(fold_in(SEED, 0), 1)
    yield "step and parameter exchanged", here, draw(exchanged)
    yield "next seed", here, draw(fold_in(fold_in(SEED.at[1].add(1), 1), 0))
    yield "raw seeds one apart", draw(SEED), draw(SEED.at[0].add(1))
    # Not the same sequence, moved along: parameters and steps would meet in it.
    yield "raw second seeds one apart, moved", here[1:], draw(base.at[1].add(1))[:-1]
    yield "raw second seeds one apart", draw(SEED), draw(SEED.at[1].add(1))


@pytest.mark.parametrize("generator", ["hash", pytest.param("threefry", marks=pytest.mark.slow)])
def test_words_are_uncorrelated(generator):
    """Correlation of the values, and of each bit of one with each bit of the other."""
    for name, a, b in pairs_of_words(generator):
        halves = [(x & 0xFFFF, x >> 16) for x in (a, b)]
        for x in halves[0]:
            for y in halves[1]:
                r = np.corrcoef(x, y)[0, 1] * np.sqrt(len(a))
                assert abs(r) < 5, (name, r)
        bits_a, bits_b = (
            np.unpackbits(x.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1).astype(np.float32) - 0.5
            for x in (a, b)
        )
        z = 4 * bits_a.T @ bits_b / np.sqrt(len(a))
        assert np.abs(z).max() < 5.5, (name, np.abs(z).max())  # 1024 pairs: 4e-5 by chance


def test_one_flipped_bit_of_anything_flips_half_of_the_word():
    base = random_words(SEED, (4096,))
    for seed in (SEED ^ jnp.array([1 << bit, 0], jnp.uint32) for bit in range(32)):
        flipped = np.unpackbits(np.asarray(base ^ random_words(seed, (4096,))).view(np.uint8)).mean()
        assert abs(flipped - 0.5) < 0.01
    for step in (0, 1, 2**16, 2**31 - 2):
        a, b = np.asarray(fold_in(SEED, step)), np.asarray(fold_in(SEED, step + 1))
        assert 12 < np.unpackbits((a ^ b).view(np.uint8)).sum() < 52  # of 64


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="needs float32, not bfloat16"):
        stochastic_round(jnp.zeros(2, jnp.bfloat16), jnp.zeros(2, jnp.uint16))
    with pytest.raises(ValueError, match="uint16 or uint32, not int32"):
        stochastic_round(jnp.zeros(2), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="generator 'rbg' is not one of"):
        random_words(SEED, (2,), "rbg")


def test_beyond_the_largest_value_is_what_a_cast_makes_of_it():
    for dtype in NARROW[1:]:
        x = jnp.array([1e30, -1e30, jnp.inf], jnp.float32)
        rounded = np.asarray(stochastic_round(x, jnp.zeros(3, jnp.uint32), dtype)).astype(np.float32)
        cast = np.asarray(x).astype(getattr(ml_dtypes, dtype, np.float16)).astype(np.float32)
        np.testing.assert_array_equal(rounded, cast)
