"""Decoding by two models: every path sees the step's p~, which a loop of full forward passes computes."""

import functools

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import (
    Beside,
    Decoder,
    SamplingConfig,
    StatefulProcessor,
    Suppress,
    beam_search,
    combine_models,
    generate,
    keep_top_p,
    steer,
    suppression,
)
from jaxllm.generate.beam import _search
from jaxllm.score import score_combined_choices
from tests.generate.test_reweight import softmax, suppressed
from tests.models.random_params import random_params

CONFIG = models.get_preset("llama-nano", vocab_size=256)
OTHER = models.get_preset("gpt2-nano", vocab_size=256)
PROMPTS = [[5, 9, 200], [17], list(range(40))]
PREFIXES = [(), (1, 2), (7, 8, 9)]
GREEDY = SamplingConfig(temperature=0)
STRENGTH, FLOOR, NEW = 60.0, 0.02, 5
STATE = suppression(STRENGTH, FLOOR)
APPLY = jax.jit(models.apply, static_argnums=0)


@functools.cache
def decoder(config):
    return Decoder(config, random_params(config, 0.3))


def logits_after(config, ids):
    padded = np.zeros((1, 64), int)
    padded[0, : len(ids)] = ids
    return np.float64(APPLY(config, random_params(config, 0.3), padded)[0, len(ids) - 1])


def log_p_after(ids, prefixes=((),)):
    """Return log p~ [V] by two full forward passes and the formula."""
    p = np.log(softmax(logits_after(CONFIG, ids)))[None]
    q = np.log([softmax(logits_after(OTHER, [*prefix, *ids]))[None] for prefix in prefixes])
    with np.errstate(divide="ignore"):
        return np.log(suppressed("exponential", p, q, STRENGTH, FLOOR))[0]


def processors(prefixes=((),)):
    return [combine_models(Beside(decoder(OTHER), prefixes), Suppress(), STATE)]


@pytest.mark.parametrize(
    "prompts, prefixes", [pytest.param(PROMPTS, ((),), marks=pytest.mark.slow), ([PROMPTS[0]] * 3, PREFIXES)]
)
def test_greedy_and_sampling_draw_from_the_steps_distribution(prompts, prefixes):
    options = dict(max_new_tokens=NEW, processors=processors(prefixes))
    greedy = generate(*decoder(CONFIG), prompts, sampling=GREEDY, **options)
    drawn = generate(*decoder(CONFIG), prompts, **options)
    differs = False
    for row, prompt in enumerate(prompts):
        for tokens, log_probs in [
            (greedy.tokens[row], None),
            (drawn.tokens[row], drawn.sampled_log_probs[row]),
        ]:
            for n, token in enumerate(tokens):
                ids = [*prompt, *tokens[:n]]
                expected = log_p_after(ids, prefixes)
                before = np.log(softmax(logits_after(CONFIG, ids)))
                differs |= abs(expected[token] - before[token]) > 0.05
                if log_probs is None:
                    assert token == np.argmax(expected)
                else:
                    np.testing.assert_allclose(log_probs[n], expected[token], atol=1e-3)
    assert differs


@pytest.mark.slow
def test_beams_sum_the_steps_log_probabilities_and_the_score_of_choices_is_the_same():
    found = beam_search(*decoder(CONFIG), PROMPTS, beams=3, max_new_tokens=NEW, processors=processors())
    choices = [[beam.tokens for beam in beams] for beams in found]
    scored = score_combined_choices(
        decoder(CONFIG), decoder(OTHER), Suppress(), PROMPTS, choices, state=STATE
    )
    for prompt, beams, scores in zip(PROMPTS, found, scored, strict=True):
        assert len({tuple(beam.tokens) for beam in beams}) == 3
        for beam, score in zip(beams, scores, strict=True):
            steps = [log_p_after([*prompt, *beam.tokens[:n]])[t] for n, t in enumerate(beam.tokens)]
            np.testing.assert_allclose(beam.log_prob, sum(steps), atol=2e-3)
            np.testing.assert_allclose(score.log_prob, sum(steps), atol=2e-3)


@pytest.mark.slow
def test_a_beam_is_the_exhaustive_search_over_a_loop():
    """Width 4, by hand: every extension of every beam, in float64."""
    prompt, K = PROMPTS[0], 4
    beams = [((), 0.0)]
    for _ in range(NEW):
        every = []
        for tokens, total in beams:
            log_p = log_p_after([*prompt, *tokens])
            every += [((*tokens, t), total + log_p[t]) for t in np.argsort(-log_p)[:K].tolist()]
        beams = sorted(every, key=lambda one: -one[1])[:K]
    [found] = beam_search(*decoder(CONFIG), [prompt], beams=K, max_new_tokens=NEW, processors=processors())
    assert [tuple(beam.tokens) for beam in found] == [tokens for tokens, _ in beams]
    [one] = beam_search(*decoder(CONFIG), [prompt], beams=1, max_new_tokens=NEW, processors=processors())
    options = dict(max_new_tokens=NEW, sampling=GREEDY, processors=processors())
    assert one[0].tokens == generate(*decoder(CONFIG), [prompt], **options).tokens[0]


def test_an_ended_beam_keeps_its_score_and_others_compile_nothing_anew():
    options = dict(beams=3, max_new_tokens=NEW)
    best = beam_search(*decoder(CONFIG), PROMPTS, processors=processors(), **options)
    end = best[0][0].tokens[1]
    ended = beam_search(*decoder(CONFIG), PROMPTS, processors=processors(), eos_id=end, **options)
    short = next(beam for beam in ended[0] if beam.tokens == best[0][0].tokens[:1])
    first = log_p_after(PROMPTS[0])[short.tokens[0]]
    last = log_p_after([*PROMPTS[0], *short.tokens])[end]
    np.testing.assert_allclose(short.log_prob, first + last, atol=2e-3)
    before = _search._cache_size()
    beam_search(*decoder(CONFIG), PROMPTS, processors=processors(), eos_id=end, **options)
    assert _search._cache_size() == before


@pytest.mark.slow
def test_rows_of_a_batch_are_what_each_is_alone():
    strengths = [0.0, 6.0, 80.0]
    several = [combine_models(decoder(OTHER), Suppress(), suppression(strengths, FLOOR))]
    together = generate(*decoder(CONFIG), PROMPTS, sampling=GREEDY, processors=several, max_new_tokens=NEW)
    for row, strength in enumerate(strengths):
        one = [combine_models(decoder(OTHER), Suppress(), suppression(strength, FLOOR))]
        alone = generate(
            *decoder(CONFIG), [PROMPTS[row]], sampling=GREEDY, processors=one, max_new_tokens=NEW
        )
        assert together.tokens[row] == alone.tokens[0]
    plain = generate(*decoder(CONFIG), PROMPTS[:1], sampling=GREEDY, max_new_tokens=NEW)
    assert together.tokens[0] == plain.tokens[0]


@pytest.mark.slow
def test_rows_that_end_drop_out_with_their_strengths():
    prompts, strengths = [PROMPTS[0]] * 8, np.linspace(0, 80, 8)

    def run(rows, **options):
        state = suppression(strengths[:rows], FLOOR)
        several = [combine_models(Beside(decoder(OTHER), PREFIXES), Suppress(), state)]
        options |= dict(processors=several, max_new_tokens=8, tokens_per_call=2)
        return generate(*decoder(CONFIG), prompts[:rows], **options).tokens

    whole = run(8)
    end = whole[0][1]
    run(4, eos_id=end)  # so that the program for four rows is there
    for full, cut in zip(whole, run(8, eos_id=end), strict=True):
        assert cut == full[: full.index(end) if end in full else None]


def test_the_same_model_beside_draws_what_it_draws_alone():
    same = [combine_models(decoder(CONFIG), Suppress(), suppression(500.0, 0.0))]
    drawn = generate(*decoder(CONFIG), PROMPTS, processors=same, max_new_tokens=NEW)
    alone = generate(*decoder(CONFIG), PROMPTS, max_new_tokens=NEW)
    assert drawn.tokens == alone.tokens
    np.testing.assert_allclose(drawn.sampled_log_probs, alone.log_probs, atol=1e-3)


def test_the_order_of_processors_is_the_order_of_truncation():
    """Truncated first, what the nucleus of p holds is drawn from; reweighted first, the nucleus of p~."""
    cut, both = keep_top_p(0.5), combine_models(decoder(OTHER), steer, 3.0)
    for order, first in [([cut, both], True), ([both, cut], False)]:
        drawn = generate(*decoder(CONFIG), PROMPTS, processors=order, max_new_tokens=NEW)
        for row, prompt in enumerate(PROMPTS):
            for n, token in enumerate(drawn.tokens[row]):
                ids = [*prompt, *drawn.tokens[row][:n]]
                base, anti = logits_after(CONFIG, ids), logits_after(OTHER, ids)
                steered = 4 * np.log(softmax(base)) - 3 * np.log(softmax(anti))
                p = softmax(base) if first else softmax(steered)
                order_V = np.argsort(-p)
                kept = order_V[np.cumsum(p[order_V]) - p[order_V] < 0.5]
                expected = np.log(softmax(steered[kept]))[kept.tolist().index(token)]
                np.testing.assert_allclose(drawn.sampled_log_probs[row][n], expected, atol=5e-3)


def test_bad_requests_are_named():
    small = models.get_preset("gpt2-nano", vocab_size=300)
    stuck = StatefulProcessor(None, lambda prompts: None, lambda scores, *rest: (scores, None))

    def beam(**options):
        return beam_search(*decoder(CONFIG), PROMPTS, **dict(beams=2, max_new_tokens=4) | options)

    def steered(beside, strength):
        return [combine_models(decoder(beside), steer, strength)]

    for call, message in [
        (lambda: combine_models([], steer), "no model is given"),
        (
            lambda: beam(processors=steered(small, 1.0)),
            "vocabularies of 256 and 300",
        ),
        (lambda: beam(processors=steered(OTHER, [1.0])), "shape .1,. for 3 rows"),
        (lambda: beam(processors=[stuck]), "no `select`"),
        (lambda: beam(beams=0), "beams is 0"),
        (lambda: beam(beams=500), "no more tokens"),
        (lambda: beam(max_new_tokens=10_000), "context holds"),
        (
            lambda: score_combined_choices(decoder(CONFIG), decoder(small), steer, [[1]], [[[2]]], state=1.0),
            "vocabularies of 256 and 300",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            call()
