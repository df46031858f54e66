"""Processors with a state and both log-probabilities, against a loop of full forward passes in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import (
    Decoder,
    SamplingConfig,
    StatefulProcessor,
    beam_search,
    combine_models,
    follow_automaton,
    generate,
    scale_each_row,
    stream,
)
from jaxllm.generate.beam import _search
from jaxllm.generate.draw import draw
from tests.models.random_params import random_params

CONFIG = models.get_preset("llama-nano", vocab_size=256)
OTHER = models.get_preset("gpt2-nano", vocab_size=256)
PROMPTS = [[5, 9, 200], [17], list(range(40))]
GREEDY = SamplingConfig(temperature=0)
OPTIONS = dict(max_new_tokens=6, tokens_per_call=3)
APPLY = jax.jit(models.apply, static_argnums=0)


@functools.cache
def decoder(config, scale=0.3):
    return Decoder(config, random_params(config, scale))


def last_logits(config, ids, scale=0.3):
    """Return float64 logits after some ids, by one full forward pass."""
    padded = np.zeros((1, min(64, config.context_length)), int)  # of one length: one program serves all
    padded[0, : len(ids)] = ids
    return np.float64(APPLY(config, random_params(config, scale), padded)[0, len(ids) - 1])


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def draw_with(second, prompts=None):
    """Return what two models draw, greedily."""
    processors = [combine_models(second, contrast)]
    prompts = PROMPTS if prompts is None else prompts
    return generate(*decoder(CONFIG), prompts, sampling=GREEDY, processors=processors, **OPTIONS)


def contrast(expert_BV, amateur_MBV, state):
    return 1.5 * expert_BV - 0.5 * amateur_MBV[0]


@pytest.mark.parametrize("prompts", [PROMPTS, pytest.param([PROMPTS[0]] * 3, marks=pytest.mark.slow)])
def test_two_models_draw_what_a_loop_over_both_draws(prompts):
    drawn = draw_with(decoder(OTHER), prompts)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for token, log_prob in zip(drawn.tokens[row], drawn.log_probs[row], strict=True):
            expert, amateur = last_logits(CONFIG, ids), last_logits(OTHER, ids)
            assert token == np.argmax(1.5 * expert - 0.5 * amateur)
            np.testing.assert_allclose(log_prob, log_softmax(expert)[token], atol=2e-4)
            ids.append(token)
    alone = generate(*decoder(CONFIG), prompts, sampling=GREEDY, **OPTIONS)
    assert alone.tokens != drawn.tokens


def test_a_second_model_reads_up_to_the_end_of_its_context():
    small = models.get_preset("gpt2-nano", vocab_size=256, context_length=12)
    ids, processors = list(PROMPTS[0]), [combine_models(decoder(small), contrast)]
    options = dict(sampling=GREEDY, processors=processors)
    drawn = generate(*decoder(CONFIG), PROMPTS[:1], max_new_tokens=10, **options)  # 12 before the last
    for token in drawn.tokens[0]:
        assert token == np.argmax(1.5 * last_logits(CONFIG, ids) - 0.5 * last_logits(small, ids))
        ids.append(token)
    with pytest.raises(UserError, match="holds 12 tokens, not the 13"):
        generate(*decoder(CONFIG), PROMPTS[:1], max_new_tokens=11, **options)


def test_weights_of_a_second_model_are_arguments_and_others_do_not_compile_again():
    first = draw_with(decoder(OTHER)).tokens
    before = draw._cache_size()
    weights = decoder(OTHER).params
    assert draw_with(decoder(OTHER, scale=0.5)).tokens != first
    assert draw._cache_size() == before
    assert not any(x.is_deleted() for x in jax.tree.leaves(weights))
    # Of a program with weights inside, the text would be as long as they are.
    processors = [combine_models(decoder(OTHER), contrast)]
    pieces = stream(*decoder(CONFIG), PROMPTS, sampling=GREEDY, processors=processors, **OPTIONS)
    arrays = pieces._carried, pieces._states, ((weights,),), jax.random.key(0)
    text = draw.lower(*decoder(CONFIG), *arrays, **pieces._fixed).as_text()
    assert len(text) < sum(x.nbytes for x in jax.tree.leaves(weights))
    next(pieces)


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(), SamplingConfig(temperature=0.6, top_k=9), SamplingConfig(temperature=2.0, top_p=0.8)],
)
def test_log_probabilities_of_the_model_and_of_what_was_drawn_from(sampling):
    temperatures = np.array([0.5, 1.0, 3.0])
    drawn = generate(
        *decoder(CONFIG), PROMPTS, sampling=sampling, processors=[scale_each_row(temperatures)], **OPTIONS
    )  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for n, token in enumerate(drawn.tokens[row]):
            logits = last_logits(CONFIG, ids)
            np.testing.assert_allclose(drawn.log_probs[row][n], log_softmax(logits)[token], atol=2e-4)
            scores = logits / temperatures[row] / sampling.temperature
            if sampling.top_k:
                scores[scores < np.sort(scores)[-sampling.top_k]] = -np.inf
            if sampling.top_p < 1:
                probs = np.exp(log_softmax(scores))
                order = np.argsort(-probs)
                before = np.cumsum(probs[order]) - probs[order]
                scores[order[before >= sampling.top_p]] = -np.inf
            expected = log_softmax(scores)[token]
            np.testing.assert_allclose(drawn.sampled_log_probs[row][n], expected, atol=1e-3)
            ids.append(token)


def test_greedy_tokens_are_drawn_with_certainty():
    drawn = generate(*decoder(CONFIG), PROMPTS, sampling=GREEDY, **OPTIONS)
    assert drawn.sampled_log_probs == [[0.0] * 6] * 3 and max(map(max, drawn.log_probs)) < 0


def test_other_temperatures_do_not_compile_again():
    def run(temperatures):
        return generate(*decoder(CONFIG), PROMPTS, processors=[scale_each_row(temperatures)], **OPTIONS)

    cold = run([1e-3, 1.0, 1.0])
    before = draw._cache_size()
    run([1.0, 1e-3, 3.0])
    assert draw._cache_size() == before
    greedy = generate(*decoder(CONFIG), PROMPTS, sampling=GREEDY, **OPTIONS)
    assert cold.tokens[0] == greedy.tokens[0] and cold.tokens[1] != greedy.tokens[1]


def test_other_temperatures_and_tables_do_not_compile_beams_again():
    def run(temperature, token):
        table = np.full((1, 256), -1)
        table[0, [token, 8]] = 0
        several = [scale_each_row([temperature]), follow_automaton(table)]
        [beams] = beam_search(*decoder(CONFIG), [[5, 9]], beams=2, max_new_tokens=2, processors=several)
        return {token for beam in beams for token in beam.tokens} - {8}

    assert run(1.0, 7) == {7}
    before = _search._cache_size()
    assert run(0.5, 9) == {9}
    assert _search._cache_size() == before


def test_an_automaton_is_followed():
    """Two digits, a letter, and so on until an end."""
    table = np.full((4, 256), -1)
    table[0, 48:58], table[1, 48:58], table[2, 97:123], table[2, 0], table[3, 0] = 1, 2, 0, 3, 3
    processors = [follow_automaton(table)]
    drawn = generate(*decoder(CONFIG), PROMPTS, processors=processors, eos_id=0, max_new_tokens=20)
    for row in drawn.tokens:
        state = 0
        for token in row:
            state = table[state, token]
            assert state >= 0
        assert len(row) == 20 or state == 2
    assert np.isfinite(np.concatenate(drawn.sampled_log_probs)).all()


def test_bad_requests_are_named():
    def run(processor, **options):
        return lambda: generate(*decoder(CONFIG), PROMPTS, processors=[processor], **OPTIONS | options)

    other = models.get_preset("gpt2-nano", vocab_size=300)
    for call, message in [
        (lambda: scale_each_row([1.0, 0.0]), "1e-6 at least"),
        (run(scale_each_row([1.0])), "1 temperatures for 3 rows"),
        (lambda: follow_automaton(np.full((2, 256), -1)), "state 0 allows no token"),
        (lambda: follow_automaton(np.full((2, 256), 2)), "state 2; the table has states 0 to 1"),
        (lambda: follow_automaton(np.zeros((2, 256)), start=2), "no state 2"),
        (run(follow_automaton(np.zeros((1, 9)))), "9 tokens and the model 256"),
        (run(combine_models(decoder(other), contrast)), "vocabularies of 256 and 300"),
        (run(combine_models(decoder(OTHER), contrast), max_new_tokens=500), "second model's context"),
        (run(scale_each_row([1.0] * 3), tokens_per_call=0), "tokens_per_call is 0"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_a_state_that_is_not_about_rows_counts_draws():
    def update(logits_BV, tokens_BS, seen_BS, weights, state):
        return jnp.where(jnp.arange(256) == weights + state, 0.0, -jnp.inf) + 0 * logits_BV, state + 1

    counting = StatefulProcessor(jnp.int32(100), lambda prompts: jnp.int32(0), update)
    drawn = generate(*decoder(CONFIG), PROMPTS, processors=[counting], **OPTIONS)
    assert drawn.tokens == [[100, 101, 102, 103, 104, 105]] * 3
