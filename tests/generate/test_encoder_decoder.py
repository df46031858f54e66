"""An encoder-decoder answers sources: cached, forked, dropped and cancelled rows; as transformers answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, SamplingConfig, beam_search, combine_models, generate
from jaxllm.pretrained import save_pretrained
from jaxllm.score import score_choices
from tests.models.random_params import random_params

CONFIG = models.EncoderDecoderConfig(
    vocab_size=37, num_layers=2, num_encoder_layers=3, embed_dim=20, num_heads=4, head_dim=6, mlp_dim=24,
    distance_buckets=8, longest_distance=10, init_std=0.3, start_id=3, context_length=8,
)  # fmt: skip
SOURCES = [
    [5, 9, 2, 30, 4, 11, 7, 7, 1, 8, 6],
    [12, 3],
    [20, 21, 22, 23, 24],
]  # one longer than context_length
GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, 0.25)


def answer(config, params, source, count, ends=()):
    """Return the greedy answer of one source, all of it computed anew for every token."""
    tokens, log_probs = [config.start_id], []
    run = jax.jit(
        lambda source, tokens: models.apply(
            config, params, tokens, context=models.encode(config, params, source)
        )
    )
    for _ in range(count):
        padded = np.zeros((1, count), np.int32)  # a token sees none after it
        padded[0, : len(tokens)] = tokens
        logits = run(jnp.asarray([source]), jnp.asarray(padded))[0, len(tokens) - 1]
        tokens.append(int(logits.argmax()))
        log_probs.append(float(jax.nn.log_softmax(logits)[tokens[-1]]))
        if tokens[-1] in ends:
            return tokens[1:-1], log_probs[:-1]
    return tokens[1:], log_probs


def test_answers_are_those_of_reading_everything_anew(params):
    count = 12  # more than context_length, which ends nothing here
    drawn = generate(CONFIG, params, SOURCES, max_new_tokens=count, sampling=GREEDY, tokens_per_call=5)
    for source, tokens, log_probs in zip(SOURCES, drawn.tokens, drawn.log_probs, strict=True):
        expected, expected_log_probs = answer(CONFIG, params, source, count)
        assert tokens == expected
        np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-4)
    assert len({tuple(log_probs) for log_probs in drawn.log_probs}) == 3  # the source matters


def test_rows_that_end_drop_out_and_change_no_other(params):
    whole = [answer(CONFIG, params, source, 12)[0] for source in SOURCES]
    end = whole[0][2]
    drawn = generate(
        CONFIG, params, SOURCES, max_new_tokens=12, sampling=GREEDY, eos_id=end, tokens_per_call=1
    )
    for tokens, all_of_it in zip(drawn.tokens, whole, strict=True):
        assert tokens == (all_of_it[: all_of_it.index(end)] if end in all_of_it else all_of_it)


@pytest.mark.slow
def test_many_answers_to_one_source_hold_its_context_once(params):
    decoder, plain = Decoder(CONFIG, params), SamplingConfig(temperature=1.0)
    key = jax.random.key(4)
    many = generate(*decoder, [SOURCES[0]] * 6, max_new_tokens=7, sampling=plain, key=key)
    assert len({tuple(tokens) for tokens in many.tokens}) > 1
    # Sources repeated unequally often: the same draws as when each repeat has a row of its own.
    alone = generate(*decoder, [SOURCES[0]] * 6 + [SOURCES[1]], max_new_tokens=7, sampling=plain, key=key)
    assert many.tokens == alone.tokens[:6]
    np.testing.assert_allclose(many.log_probs, alone.log_probs[:6], atol=1e-4)

    hidden, source = decoder.prefill(np.array(SOURCES[2:]), slots=3)
    fork = decoder.fork(source, [0] * 6, slots=4)
    held = lambda cache: sum(
        x.nbytes for x in jax.tree.leaves((cache["context"].key, cache["context"].value))
    )
    assert held(fork) == held(source) and models.cache_rows(fork) == 6

    @jax.jit
    def last(sources, rows):
        return models.trunk(CONFIG, params, rows, context=models.encode(CONFIG, params, sources))[:, -1]

    def expected(rows):
        return last(jnp.asarray(SOURCES[2:] * len(rows)), jnp.asarray(rows))

    np.testing.assert_allclose(hidden, expected([[3]]), atol=1e-5)
    one, fork = decoder.step(np.arange(6), fork)
    np.testing.assert_allclose(one, expected([[3, t] for t in range(6)]), atol=1e-5)
    again = decoder.fork(fork, [4, 1, 4], slots=2)  # a fork of a fork; what it was made of stays good
    one, _ = decoder.step(np.array([7, 8, 9]), again)
    np.testing.assert_allclose(one, expected([[3, 4, 7], [3, 1, 8], [3, 4, 9]]), atol=1e-5)
    one, fork = decoder.step(np.array([11, 12]), decoder.cancel(fork, [0, 1, 3, 4]))
    np.testing.assert_allclose(one, expected([[3, 2, 11], [3, 5, 12]]), atol=1e-5)
    one, _ = decoder.step(np.array([13]), source)
    np.testing.assert_allclose(one, expected([[3, 13]]), atol=1e-5)


@pytest.mark.slow
def test_two_models_answer_together(params):
    other = Decoder(CONFIG, random_params(CONFIG, 0.4))
    processor = combine_models(other, _second)
    drawn = generate(CONFIG, params, SOURCES, max_new_tokens=5, sampling=GREEDY, processors=[processor])
    assert drawn.tokens == generate(*other, SOURCES, max_new_tokens=5, sampling=GREEDY).tokens
    decoder = models.get_preset("gpt2-nano", vocab_size=37)
    second = combine_models(Decoder(decoder, random_params(decoder)), _second)
    with pytest.raises(UserError, match="one of the models answers sources"):
        generate(CONFIG, params, SOURCES, max_new_tokens=5, processors=[second])


def _second(log_p_BV, log_q_MBV, state):
    del log_p_BV, state
    return log_q_MBV[0]


@pytest.mark.slow
def test_the_best_beam_is_the_likeliest_answer_of_all(params):
    [found] = beam_search(CONFIG, params, SOURCES[:1], beams=37, max_new_tokens=2)
    scores = score_choices(CONFIG, params, SOURCES[:1], [[[a, b] for a in range(37) for b in range(37)]])[0]
    best = max(range(37 * 37), key=lambda number: scores[number].log_prob)
    assert found[0].tokens == list(divmod(best, 37))  # as wide as the vocabulary a beam misses none
    np.testing.assert_allclose(found[0].log_prob, scores[best].log_prob, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("tied", [False, True])
def test_greedy_answers_are_those_of_transformers(params, tied, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, start_id=0)
    params = random_params(config, 0.25)
    save_pretrained(tmp_path / "t5", config, params)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "t5").eval()
    if not tied:
        head = np.asarray(params["head"]["kernel"]).T
        model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(head.copy()))
    options = dict(max_new_tokens=10, sampling=GREEDY)
    end = generate(config, params, SOURCES, **options).tokens[1][1]  # one that comes
    drawn = generate(config, params, SOURCES, **options, eos_id=end)
    ended = 0
    for source, tokens in zip(SOURCES, drawn.tokens, strict=True):
        options = dict(
            max_new_tokens=10, do_sample=False, decoder_start_token_id=0, eos_token_id=end, pad_token_id=0
        )
        theirs = model.generate(torch.tensor([source]), **options)[0, 1:].tolist()
        theirs = theirs[: theirs.index(end)] if end in theirs else theirs
        ended += len(theirs) < 10
        assert tokens == theirs
    assert ended and any(drawn.tokens)
