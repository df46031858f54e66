"""Logits processors against brute force in float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig
from jaxllm.generate.processors import (
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    scale_temperature,
)

LOGITS = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * 3


def softmax(row):
    e = np.exp(np.float64(row) - row.max())
    return e / e.sum()


def kept(processor):
    out = np.asarray(processor(jnp.array(LOGITS), None, None))
    finite = np.isfinite(out)
    np.testing.assert_array_equal(out[finite], LOGITS[finite])  # what is kept is not changed
    return finite


@pytest.mark.parametrize("k", [1, 3, 40, 100])
def test_top_k(k):
    for row, mask in zip(LOGITS, kept(keep_top_k(k)), strict=True):
        assert set(np.flatnonzero(mask)) == set(np.argsort(-row)[:k])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_is_the_smallest_set_that_reaches_p(p):
    for row, mask in zip(LOGITS, kept(keep_top_p(p)), strict=True):
        probs, chosen, total = softmax(row), [], 0.0
        for token in np.argsort(-row):
            chosen.append(token)
            total += probs[token]
            if total >= p:
                break
        assert set(np.flatnonzero(mask)) == set(chosen)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.9])
def test_min_p(p):
    for row, mask in zip(LOGITS, kept(keep_min_p(p)), strict=True):
        probs = softmax(row)
        np.testing.assert_array_equal(mask, probs >= p * probs.max())


def test_repetition_penalty_touches_seen_tokens_once_and_skips_padding():
    tokens = np.array([[0, 7, 3, 3, 9]] * 5)
    seen = np.array([[False, True, True, True, False]] * 5)  # padding on the left, a free slot
    out = penalize_repetition(1.5)(jnp.array(LOGITS), jnp.array(tokens), jnp.array(seen))
    expected = LOGITS.copy()
    for token in (7, 3):
        expected[:, token] = np.where(
            LOGITS[:, token] > 0, LOGITS[:, token] / 1.5, LOGITS[:, token] * 1.5
        )
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_temperature():
    np.testing.assert_allclose(scale_temperature(0.5)(LOGITS, None, None), LOGITS * 2)


@pytest.mark.parametrize(
    "values", [{"temperature": -1}, {"top_k": -2}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 1.0}]
)
def test_bad_values_are_named(values):
    with pytest.raises(UserError, match=f"{next(iter(values))} is"):
        SamplingConfig(**values)
