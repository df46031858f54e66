"""A model prepared once: the same tokens as the plain one, its weights laid out no second time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, SamplingConfig, generate
from tests.models.random_params import random_params

CONFIG = models.get_preset("llama-nano", vocab_size=256)
PARAMS = random_params(CONFIG)
TOKENS = np.random.default_rng(2).integers(0, 256, (2, 6), dtype=np.int32)
TRUNK = jax.jit(models.trunk, static_argnums=0)
OPTIONS = dict(max_new_tokens=6, tokens_per_call=6, sampling=SamplingConfig(temperature=0))


def test_generation_lays_out_weights_once(monkeypatch):
    plain = generate(CONFIG, PARAMS, [[5, 9, 200], [17]], **OPTIONS)
    decoder = Decoder(CONFIG, PARAMS)
    monkeypatch.setattr("jaxllm.models.decoding_layout._views", None)  # any new layout raises
    for _ in range(2):
        assert generate(*decoder, [[5, 9, 200], [17]], **OPTIONS) == plain
    with pytest.raises(TypeError):
        generate(CONFIG, PARAMS, [[5]], **OPTIONS)


def test_prefill_and_steps_equal_the_full_forward_pass():
    decoder = Decoder(CONFIG, PARAMS)
    hidden, cache = decoder.prefill(TOKENS[:, :4], np.arange(4) >= np.array([[0], [2]]), slots=6)
    states = [hidden]
    for t in (4, 5):
        hidden, cache = decoder.step(TOKENS[:, t], cache)
        states.append(hidden)
    for row, begin in enumerate((0, 2)):
        # Of one length, so that one program serves both: tokens on the right change nothing on their left.
        alone = np.roll(TOKENS[row : row + 1], -begin)
        expected = np.asarray(TRUNK(CONFIG, PARAMS, alone))[0, 3 - begin : 6 - begin]
        np.testing.assert_allclose(np.stack(states)[:, row], expected, atol=2e-5)


def test_a_full_cache_is_not_overwritten_in_silence():
    decoder = Decoder(CONFIG, PARAMS)
    hidden, cache = decoder.prefill(TOKENS[:, :4], slots=6)
    for t in (4, 5):
        hidden, cache = decoder.step(TOKENS[:, t], cache)
        assert np.isfinite(hidden).all()
    with pytest.raises(UserError, match=r"of shape \(3,\) and the cache has 2 rows; give one token a row"):
        decoder.step(np.array([1, 2, 3]), cache)
    assert np.isnan(decoder.step(TOKENS[:, 0], cache)[0]).all()


def hybrid(part):
    return models.HybridConfig(parts=(part,), tables="parts")


@pytest.mark.parametrize("kind", [lambda part: part, hybrid], ids=["gpt2", "hybrid"])
def test_a_token_behind_the_last_position_is_not_read_as_the_last_in_silence(kind):
    """A table of 8 rows, and slots for more: a row that is padded has as many tokens less behind it."""
    config = kind(models.get_preset("gpt2-nano", num_layers=1, context_length=8))
    decoder = Decoder(config, random_params(config))
    with pytest.raises(UserError, match="9 tokens do not fit context_length=8"):
        decoder.prefill(np.zeros((1, 9), int), slots=12)
    with pytest.raises(UserError, match="9 tokens do not fit context_length=8"):
        models.decode(*decoder, jnp.zeros((1, 9), int), models.empty_cache(*decoder, 1, 12))
    mask = np.arange(6) >= np.array([[0], [2]])
    _, cache = decoder.prefill(TOKENS, mask, slots=12)
    forked = decoder.fork(cache, [0, 1], slots=6)
    for one in (forked, cache):  # which a step uses up
        fits = []
        for t in range(5):
            hidden, one = decoder.step(TOKENS[:, t], one)
            fits.append(np.isfinite(hidden).all(1).tolist())
        assert fits == [[True, True], [True, True], [False, True], [False, True], [False, False]]


@pytest.mark.parametrize("prompts, said", [
    ([[1, 2, 3]], "3 tokens do not fit a cache of 2 slots"),
    ([[999]], "prompts hold the id 999; the vocabulary has ids from 0 to 255"),
    ([[1], [1, 2, 3]], "prompts differ in length; pad them on the left .* mask_BT"),
    ([1, 2], r"of shape \(2,\); expected \[B, T\]"),
])  # fmt: skip
def test_prompts_that_do_not_fit_are_told_in_a_sentence(prompts, said):
    with pytest.raises(UserError, match=said):
        Decoder(CONFIG, PARAMS).prefill(prompts, slots=2)
