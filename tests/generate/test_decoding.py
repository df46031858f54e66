"""Decoding with a cache against the plain model, one full forward pass a token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import SamplingConfig, generate, generate_text, stream, stream_text
from jaxllm.generate.draw import draw
from jaxllm.generate.text import settled

GREEDY = SamplingConfig(temperature=0)
PROMPTS = [[5, 9, 200], [17], list(range(40))]  # shorter and longer than one bucket


@functools.cache
def make(preset):
    config = models.get_preset(preset, vocab_size=256)
    params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(1))
    # Sharper than at initialisation, so that no two logits are equal.
    return config, jax.tree.map(lambda x: x * 3, params)


@functools.partial(jax.jit, static_argnums=0)
def greedy_token(config, params, ids_S, length):
    """Return (token, log-probability) after `length` tokens; what follows them cannot change it."""
    log_probs_V = jax.nn.log_softmax(models.apply(config, params, ids_S[None])[0, length - 1])
    return jnp.argmax(log_probs_V), jnp.max(log_probs_V)


def greedy_by_hand(config, params, prompt, count):
    ids, log_probs = np.zeros(64, int), []  # of one length, so that one program serves all
    ids[: len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + count):
        ids[length], log_prob = greedy_token(config, params, ids, length)
        log_probs.append(log_prob)
    return ids[len(prompt) : len(prompt) + count].tolist(), log_probs


@pytest.mark.smoke
@pytest.mark.parametrize("preset", ["gpt2-nano", "gpt-neo-nano", "llama-nano"])
def test_greedy_equals_full_forward_passes_for_prompts_of_any_length(preset):
    config, params = make(preset)
    drawn = generate(config, params, PROMPTS, max_new_tokens=11, sampling=GREEDY, tokens_per_call=4)
    for row, prompt in enumerate(PROMPTS):
        tokens, log_probs = greedy_by_hand(config, params, prompt, 11)
        assert drawn.tokens[row] == tokens
        np.testing.assert_allclose(drawn.log_probs[row], log_probs, atol=2e-4)


@pytest.mark.parametrize(
    "preset",
    ["gpt2-nano", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt-neo-nano", "llama-nano"))],
)
def test_past_the_context_each_token_is_drawn_from_the_last_window(preset):
    """As nanoGPT does: positions begin anew with every window, of learned and of rotary models."""
    config = models.get_preset(preset, vocab_size=256, context_length=12)
    params = jax.tree.map(lambda x: x * 3, models.init(config, jax.random.key(1)))
    prompts = [[5, 9, 200], list(range(40, 51)), list(range(30)), [17]]  # one is longer than the context
    apply = jax.jit(lambda tokens, last: jax.nn.log_softmax(models.apply(config, params, tokens)[0, last]))
    expected, log_probs = [], []
    for prompt in prompts:
        ids = list(prompt)
        log_probs.append([])
        for _ in range(18):
            window = ids[-12:]  # padded on the right, which a causal model does not see
            log_probs_V = apply(jnp.array([window + [0] * (12 - len(window))]), len(window) - 1)
            ids.append(int(jnp.argmax(log_probs_V)))
            log_probs[-1].append(jnp.max(log_probs_V))
        expected.append(ids[len(prompt) :])
    # With cached calls first, and without; after one token, whole calls fill the context and one more.
    for rows in ([0], [0, 1, 2], [3]):
        drawn = generate(
            config, params, [prompts[row] for row in rows], max_new_tokens=18, sampling=GREEDY,
            tokens_per_call=4,
        )  # fmt: skip
        assert drawn.tokens == [expected[row] for row in rows]
        np.testing.assert_allclose(drawn.log_probs, [log_probs[row] for row in rows], atol=2e-4)


def test_any_of_several_ids_ends_a_row():
    config, params = make("gpt2-nano")
    free = generate(config, params, PROMPTS, max_new_tokens=12, sampling=GREEDY)
    ends = (free.tokens[0][5], free.tokens[1][2])
    ended = generate(config, params, PROMPTS, max_new_tokens=12, sampling=GREEDY, eos_id=ends)
    for with_ends, without in zip(ended.tokens, free.tokens, strict=True):
        first = min((without.index(end) for end in ends if end in without), default=12)
        assert with_ends == without[:first]
    assert len(ended.tokens[0]) < 12 and len(ended.tokens[1]) < 12


def test_a_row_ends_at_end_of_text_and_the_others_go_on():
    config, params = make("gpt2-nano")
    free = generate(config, params, PROMPTS, max_new_tokens=12, sampling=GREEDY)
    eos = free.tokens[0][3]
    ended = generate(config, params, PROMPTS, max_new_tokens=12, sampling=GREEDY, eos_id=eos)
    for with_eos, without in zip(ended.tokens, free.tokens, strict=True):
        expected = without[: without.index(eos)] if eos in without else without
        assert with_eos == expected


def test_a_streamed_row_that_has_ended_repeats_end_of_text():
    config, params = make("gpt2-nano")
    free = generate(config, params, PROMPTS, max_new_tokens=12, sampling=GREEDY)
    eos = free.tokens[0][3]
    pieces = stream(config, params, PROMPTS, max_new_tokens=12, sampling=GREEDY, eos_id=eos)
    row = np.concatenate([tokens[0] for tokens, *_ in pieces]).tolist()
    first = row.index(eos)
    assert len(row) == 12 and row[first:] == [eos] * (12 - first)
    assert free.tokens[0][first:] != row[first:]


def test_draws_follow_the_models_distribution():
    """4,000 first tokens at temperature 1: chi-square within 5 standard deviations of its mean."""
    config, params = make("gpt2-nano")
    prompts, probs = [[3, 4]] * 2000, None
    probs = np.asarray(jax.nn.softmax(models.apply(config, params, jnp.array([[3, 4]]))[0, -1]))
    counts = np.zeros(256)
    for seed in range(2):
        drawn = generate(
            config, params, prompts, max_new_tokens=1, tokens_per_call=1, key=jax.random.key(seed)
        )
        counts += np.bincount([row[0] for row in drawn.tokens], minlength=256)
    common = probs > 5 / 4000
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * 4000
    chi2, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_processor_of_ones_own_sees_what_was_drawn():
    config, params = make("gpt2-nano")

    def never_twice(logits_BV, tokens_BS, seen_BS):
        rows = jnp.arange(len(logits_BV))[:, None]
        return logits_BV.at[rows, tokens_BS].add(jnp.where(seen_BS, -1e9, 0.0))

    drawn = generate(
        config, params, PROMPTS, max_new_tokens=60, sampling=GREEDY, processors=(never_twice,)
    )
    for row, prompt in zip(drawn.tokens, PROMPTS, strict=True):
        assert len(set(row)) == 60 and not set(row) & set(prompt)


def test_new_prompts_and_seeds_do_not_compile_again():
    config, params = make("gpt2-nano")
    generate(config, params, [[1, 2]], max_new_tokens=8)
    before = draw._cache_size()
    for seed in range(3):
        generate(config, params, [[seed, 7, 9]], max_new_tokens=8, key=jax.random.key(seed))
    assert draw._cache_size() == before


class Letters:
    """A tokenizer with a character an id."""

    eos_id = 0
    encode = staticmethod(lambda text: [ord(c) for c in text])
    decode = staticmethod(lambda ids: "".join(map(chr, ids)))


def test_text_in_text_out_with_an_empty_prompt():
    config, params = make("gpt2-nano")
    texts = generate_text(config, params, Letters, ["ab", ""], max_new_tokens=3, sampling=GREEDY)
    for text, prompt in zip(texts, ([97, 98], [0]), strict=True):
        expected = Letters.decode(greedy_by_hand(config, params, prompt, 3)[0])
        assert text == expected.split("\0")[0]


def test_one_string_is_one_prompt():
    config, params = make("gpt2-nano")
    options = dict(max_new_tokens=3, sampling=GREEDY)
    [expected] = generate_text(config, params, Letters, ["ab"], **options)
    assert generate_text(config, params, Letters, "ab", **options) == expected and len(expected) == 3
    assert [texts for texts in stream_text(config, params, Letters, "ab", **options)][-1] == [expected]
    with pytest.raises(UserError, match="a list of prompts"):
        generate_text(config, params, Letters, [97, 98], **options)


def test_ids_may_be_arrays_as_the_tokenizer_returns_them():
    config, params = make("gpt2-nano")
    options = dict(max_new_tokens=3, sampling=GREEDY)
    expected = generate(config, params, [[97, 98], [99, 100]], **options).tokens
    ids = jnp.array([[97, 98], [99, 100]])
    for prompts in (ids, list(ids), np.asarray(ids)):
        assert generate(config, params, prompts, **options).tokens == expected
        texts = generate_text(config, params, Letters, prompts, **options)
        assert texts == [Letters.decode(row) for row in expected]


def test_stop_strings_end_a_row_before_them_wherever_calls_are_cut():
    config, params = make("gpt2-nano")
    options = dict(max_new_tokens=24, sampling=GREEDY)
    free = generate_text(config, params, Letters, ["ab", "cd"], **options)
    stop = free[0][7:10]  # three tokens long: spans calls of one or two tokens
    for tokens_per_call in (1, 2, 24):
        ended = generate_text(
            config, params, Letters, ["ab", "cd"], stop=[stop, "never"], **options,
            tokens_per_call=tokens_per_call,
        )  # fmt: skip
        assert ended == [text.split(stop)[0] for text in free]
    alone = generate_text(config, params, Letters, ["ab", "cd"], stop=stop, **options)  # not its letters
    assert alone == [text.split(stop)[0] for text in free]
    assert "".join(settled(["on", "one", "one."], stop="end")) == "one."
    with pytest.raises(UserError, match="stop string is empty"):
        generate_text(config, params, Letters, "ab", stop="", **options)


def test_streamed_text_grows_and_ends_as_the_whole():
    config, params = make("gpt2-nano")
    options = dict(max_new_tokens=20, sampling=GREEDY, tokens_per_call=4)
    seen = [text for [text] in stream_text(config, params, Letters, ["ab"], **options)]
    assert len(seen) == 5 and all(b.startswith(a) for a, b in zip(seen, seen[1:], strict=False))
    assert seen[-1] == generate_text(config, params, Letters, ["ab"], **options)[0]


@pytest.mark.parametrize(
    "prompts, count, message",
    [
        ([[]], 5, "empty"),
        ([[1, 999]], 5, "999.*255"),
        ([[1]], 0, "max_new"),
    ],
)
def test_bad_requests_are_named(prompts, count, message):
    config, params = make("gpt2-nano")
    with pytest.raises(UserError, match=message):
        generate(config, params, prompts, max_new_tokens=count)
