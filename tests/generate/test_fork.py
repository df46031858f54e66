"""Rows that share a prompt, and rows that drop out, against a full forward pass for each row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from tests.models.random_params import random_params

PROMPTS = np.random.default_rng(0).integers(0, 256, (3, 7))
STARTS = [0, 2, 5]  # padding on the left
ROWS = [2, 0, 0, 2, 0, 1, 0]  # some prompts are continued more often than others
TOKENS = np.random.default_rng(1).integers(0, 256, (7, 6))
CONFIGS = {
    "llama": models.get_preset("llama-nano", vocab_size=256),
    "windows": models.get_preset("gpt-neo-nano", vocab_size=256, windows=(0, 6)),
    "sinks": models.get_preset("gpt2-nano", vocab_size=256, sink_logit="learned"),
    "softmax-1": models.get_preset("gpt2-nano", vocab_size=256, sink_logit=0.0),
    "mamba": models.get_preset("mamba-nano", vocab_size=256),
}
TRUNK = jax.jit(models.trunk, static_argnums=0)
several = pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "windows", "mamba"])


@functools.cache
def prompted(name, stacked=False):
    """Return (decoder, the prompts' cache)."""
    config = CONFIGS[name]
    params = random_params(config)
    decoder = Decoder(config, params)
    if stacked:
        decoder.params = params
    mask = np.arange(7) >= np.array(STARTS)[:, None]
    return decoder, decoder.prefill(PROMPTS, mask, slots=9)[1]  # two slots stay free


@functools.cache
def expected(name):
    """Return hidden states of the continuations, each row by a pass of its own."""
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    states = []
    for row, prompt in enumerate(ROWS):
        ids = np.concatenate([PROMPTS[prompt, STARTS[prompt] :], TOKENS[row]])
        padded = np.zeros((1, 13), int)  # of one length, so that one program serves all
        padded[0, : len(ids)] = ids
        states.append(np.asarray(TRUNK(config, params, padded))[0, len(ids) - 6 : len(ids)])
    return np.stack(states)


@pytest.mark.parametrize("name, stacked", [
    ("llama", False), ("windows", False), ("sinks", False), ("mamba", False), ("windows", True),
    pytest.param("softmax-1", False, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_forked_row_is_what_its_prompt_and_tokens_are_together(name, stacked):
    decoder, cache = prompted(name, stacked)
    for _ in range(2):  # the prompts' cache stays good
        forked = decoder.fork(cache, ROWS, slots=6)
        several, forked = decoder.extend(TOKENS[:, :3], forked)
        states = [several]
        for t in range(3, 6):
            hidden, forked = decoder.step(TOKENS[:, t], forked)
            states.append(hidden[:, None])
        np.testing.assert_allclose(np.concatenate(states, axis=1), expected(name), atol=1e-5)


@several
def test_a_fork_of_a_fork(name):
    decoder, cache = prompted(name)
    cache = decoder.fork(cache, [0, 2], slots=3)
    _, cache = decoder.extend(TOKENS[[1, 0], :2], cache)
    cache = decoder.fork(cache, [1, 0, 0], slots=4)
    tokens = np.concatenate([TOKENS[[0, 1, 1], :2], TOKENS[[0, 1, 4], 2:]], axis=1)
    hidden, _ = decoder.extend(tokens[:, 2:], cache)
    np.testing.assert_allclose(hidden[:2], expected(name)[:2, 2:], atol=1e-5)
    ids = np.concatenate([PROMPTS[0], tokens[2]])
    full = TRUNK(CONFIGS[name], random_params(CONFIGS[name]), ids[None])
    np.testing.assert_allclose(hidden[2], full[0, -4:], atol=1e-5)


def test_a_cache_that_was_used_up_is_named_and_a_fork_of_it_goes_on_in_its_place():
    decoder, cache = prompted("windows")
    cache = jax.tree.map(jnp.copy, cache)
    first = [ROWS.index(prompt) for prompt in range(3)]  # rows that go on with each prompt
    forked, parent = decoder.fork(cache, ROWS, slots=6), decoder.fork(cache, range(3), slots=2)
    hidden, after = decoder.extend(TOKENS[first, :2], parent)
    np.testing.assert_allclose(hidden, expected("windows")[first, :2], atol=1e-5)
    assert jax.eval_shape(decoder.step, TOKENS[:, 0], forked)[0].shape == (7, 64)  # traced, as in a jit
    hidden, forked = decoder.step(TOKENS[:, 0], forked)
    np.testing.assert_allclose(hidden, expected("windows")[:, 0], atol=1e-5)
    decoder.step(TOKENS[first, 0], cache)
    for tokens, used_up in ((TOKENS[first, 0], parent), (TOKENS[first, 0], after), (TOKENS[:, 1], forked)):
        with pytest.raises(UserError, match="the cache was used up"):
            decoder.step(tokens, used_up)


@several
def test_rows_that_are_left_go_on_as_if_nothing_had_dropped_out(name):
    decoder, cache = prompted(name)
    forked = decoder.fork(cache, ROWS, slots=6)
    _, forked = decoder.extend(TOKENS[:, :2], forked)
    forked = decoder.cancel(forked, [0, 4, 5])  # all that continued prompt 1 with them
    left = [1, 2, 3, 6]
    hidden, forked = decoder.extend(TOKENS[left, 2:4], forked)
    np.testing.assert_allclose(hidden, expected(name)[left, 2:4], atol=1e-5)
    forked = decoder.cancel(forked, [1])
    hidden, _ = decoder.extend(TOKENS[[1, 3, 6], 4:], forked)
    np.testing.assert_allclose(hidden, expected(name)[[1, 3, 6], 4:], atol=1e-5)


@several
def test_padding_before_the_tokens_of_a_fork_is_in_no_window_and_no_convolution(name):
    """Also a whole call of padding, with tokens of the row's own before it and without."""
    decoder, cache = prompted(name)
    cache, states = decoder.fork(cache, ROWS, slots=15), [[] for _ in ROWS]
    for step in range(3):
        tokens, mask = np.zeros((7, 5), int), np.zeros((7, 5), bool)
        counts = [(row + step) % 3 for row in range(7)]  # 0, 1 and 2 in some order: 3 tokens of each
        for row, n in enumerate(counts):
            done = len(states[row])
            tokens[row, 5 - n :], mask[row, 5 - n :] = TOKENS[row, done : done + n], True
        hidden, cache = decoder.extend(tokens, cache, mask)
        for row, n in enumerate(counts):
            states[row] += list(np.asarray(hidden[row, 5 - n :]))
    np.testing.assert_allclose(np.array(states), expected(name)[:, :3], atol=1e-5)


def test_a_row_drops_out_of_a_batch_that_was_not_forked():
    decoder, cache = prompted("llama")
    copy = jax.tree.map(jnp.copy, cache)
    all_rows, _ = decoder.step(TOKENS[:3, 0], jax.tree.map(jnp.copy, cache))
    two_rows, _ = decoder.step(TOKENS[[0, 2], 0], decoder.cancel(copy, [1]))
    np.testing.assert_allclose(np.asarray(all_rows)[[0, 2]], two_rows, atol=1e-6)


def test_a_prompt_is_held_once_however_many_rows_continue_it():
    decoder, cache = prompted("llama")
    forked = decoder.fork(cache, [0] * 32, slots=1)
    assert forked["shared"][0].key is cache["key"]
    step = jax.jit(lambda tokens, cache: models.decode(*decoder, tokens, cache)[0])
    wide = step.lower(np.zeros((32, 1), int), forked).compile().memory_analysis()
    copied = jax.tree.map(lambda x: jnp.zeros((32, *x.shape[1:]), x.dtype) if x.ndim else x, cache)
    held = sum(x.nbytes for x in jax.tree.leaves(copied))
    assert wide.argument_size_in_bytes - sum(x.nbytes for x in jax.tree.leaves(decoder.params)) < held / 4


def test_bad_requests_are_named():
    decoder, cache = prompted("llama")
    wrong = {"row 3 .* rows 0 to 2": [0, 3], "at least one": [], "row -1": [-1], "numbers": [0.5]}
    for message, rows in wrong.items():
        with pytest.raises(UserError, match=message):
            decoder.fork(cache, rows, slots=4)
    with pytest.raises(UserError, match="row 7"):
        decoder.cancel(cache, [7])
    with pytest.raises(UserError, match="all 3 rows"):
        decoder.cancel(cache, [0, 1, 2])
