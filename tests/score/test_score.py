"""Scores equal those of full logits in float64, whatever shares a batch, a context or a window."""

import functools
import math

import jax
import numpy as np
import pytest

from jaxllm import data, models, score
from jaxllm.data.length_batches import length_batches
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, Suppress, suppression
from tests.models.random_params import random_params

TEXT = "a man, a plan - a canal: Panamá! and  more of the same text, to fill some windows"


@functools.cache
def model(name="gpt2-nano", **changes):
    config = models.get_preset(
        name, **(dict(vocab_size=257, embed_dim=32, num_heads=4, context_length=40) | changes)
    )
    return config, random_params(config)


@functools.cache
def full(config):
    return jax.jit(functools.partial(models.apply, config))


def reference(config, params, ids):
    """Return log p of every token [n, V] after each of n, float64, from one row of full logits."""
    padded = np.zeros((1, config.context_length), np.int32)
    padded[0, : len(ids)] = ids
    logits = np.asarray(full(config)(params, padded), np.float64)[0, : len(ids)]
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def log_probs(config, params, ids):
    table = reference(config, params, ids[:-1])
    return np.array([table[i, ids[i + 1]] for i in range(len(ids) - 1)])


def random_ids(n, seed=0):
    return np.random.default_rng(seed).integers(0, 257, n).tolist()


@pytest.mark.parametrize(
    "name, tied", [("gpt2-nano", True), pytest.param("llama-nano", False, marks=pytest.mark.slow)]
)
def test_sequences_of_any_lengths_score_as_alone(name, tied):
    config, params = model(name, tie_embeddings=tied)
    sequences = [random_ids(n, n) for n in (7, 1, 41, 2, 20, 19)]
    scores = score.score_sequences(config, params, sequences, tokens_per_batch=64)
    for ids, got in zip(sequences, scores, strict=True):
        assert got.shape == (len(ids) - 1,)
        np.testing.assert_allclose(got, log_probs(config, params, ids), atol=1e-5)


@pytest.mark.parametrize("kind", ["hidden", "logits", "own"])
def test_a_head_of_groups_scores_as_its_full_log_probabilities(kind):
    groups = models.VocabGroups.of(np.random.default_rng(0).permutation(257), 17)
    config, params = model(vocab_groups=groups, group_head=kind)
    ids = random_ids(30)
    [got] = score.score_sequences(config, params, [ids])
    np.testing.assert_allclose(got, log_probs(config, params, ids), atol=1e-5)


def test_gradients_of_token_log_probs_are_those_of_full_logits():
    config, params = model()
    hidden = jax.random.normal(jax.random.key(0), (2, 5, 32))
    targets, weights = np.array([random_ids(5), random_ids(5, 1)]), np.arange(10.0).reshape(2, 5)

    def by_kernel(hidden):
        return (weights * models.token_log_probs(config, params, hidden, targets)).sum()

    def by_logits(hidden):
        table = jax.nn.log_softmax(models.logits(config, params, hidden))
        return (weights * jax.numpy.take_along_axis(table, targets[..., None], -1)[..., 0]).sum()

    np.testing.assert_allclose(jax.grad(by_kernel)(hidden), jax.grad(by_logits)(hidden), atol=1e-5)


def test_choices_that_share_a_context_score_as_whole_sequences():
    config, params = model("llama-nano", num_kv_heads=2)
    contexts = [random_ids(n, n) for n in (1, 9, 30, 9, 17)]
    choices = [[random_ids(n, 7 * n + i) for n in lengths] for i, lengths in
               enumerate([(1, 3), (2,), (10, 1, 1), (4, 4), ()])]  # fmt: skip
    greedy = []  # the likeliest token after each context is a continuation of one token
    for context, some in zip(contexts, choices, strict=True):
        greedy.append(int(reference(config, params, context)[-1].argmax()))
        some.append([greedy[-1]])
    for tokens_per_batch in (64, 4096):
        scores = score.score_choices(config, params, contexts, choices, tokens_per_batch=tokens_per_batch)
        for context, some, row in zip(contexts, choices, scores, strict=True):
            for one, got in zip(some, row, strict=True):
                expected = log_probs(config, params, context + one)[-len(one) :]
                assert got.log_prob == pytest.approx(expected.sum(), abs=1e-4)
                assert got.tokens == len(one)
                table = reference(config, params, context + one)[-len(one) - 1 : -1]
                assert got.is_greedy == (table.argmax(axis=1).tolist() == one)
        assert sum(row[-1].is_greedy for row in scores) == len(scores)


def test_labels_of_several_tokens_are_normalised():
    config, params = model()
    prompts, labels = [random_ids(5), random_ids(12, 3)], [[1], [2, 3], [2, 4]]
    got = score.label_log_probs(config, params, prompts, labels)
    joint = np.array([[log_probs(config, params, p + y)[-len(y) :].sum() for y in labels] for p in prompts])
    np.testing.assert_allclose(got, joint - np.logaddexp.reduce(joint, axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize(
    "length, window, stride", [(1, 4, None), (2, 4, None), (23, 5, None), (23, 5, 2), (9, 9, 1)]
)
def test_windows_predict_every_id_once_with_context(length, window, stride):
    predicted = []
    for number, one in enumerate(score.rolling_windows(length, window, stride)):
        predicted += range(one.end - one.scored, one.end)
        assert one.end - one.begin <= window + 1
        if number:  # later windows are full, so that no token has less context than it could
            assert one.end - one.begin == window + 1
    assert predicted == list(range(1, length))


@pytest.mark.parametrize("stride", [None, 3])
def test_texts_are_scored_in_windows_and_per_byte_of_the_original(stride):
    config, params = model()
    tokenizer = data.load_tokenizer("bytes")
    texts = [TEXT, "", "x"]
    scores = score.score_texts(config, params, tokenizer, texts, window=16, stride=stride)
    for text, got in zip(texts, scores, strict=True):
        ids = [256, *text.encode()]
        expected = 0.0
        for one in score.rolling_windows(len(ids), 16, stride):
            expected += log_probs(config, params, ids[one.begin : one.end])[-one.scored :].sum()
        assert got.log_prob == pytest.approx(expected, abs=1e-3)
        assert got.tokens == got.bytes == len(text.encode())
        assert got.words == len(text.split())
    first = scores[0]
    assert score.score_texts(config, params, tokenizer, TEXT, window=16, stride=stride) == first
    assert first.bits_per_byte == pytest.approx(-first.log_prob / math.log(2) / len(TEXT.encode()))
    assert (first + scores[2]).perplexity == pytest.approx(
        math.exp(-(first.log_prob + scores[2].log_prob) / (first.tokens + 1))
    )


@pytest.mark.parametrize("boundary", ["sum", "corrected"])
def test_word_surprisals_are_sums_over_tokens_with_the_boundary_where_it_belongs(boundary):
    config, params = model()
    tokenizer = data.load_tokenizer("bytes")
    words = "to be, naïve or not".split()
    [got] = score.word_surprisals(config, params, tokenizer, [words], boundary=boundary)
    ids = [256, *" ".join(words).encode()]
    table, expected, place = reference(config, params, ids), [], 0
    for number, word in enumerate(words):
        own = (" " * bool(number) + word).encode()
        value = sum(table[place + i, byte] for i, byte in enumerate(own))
        if boundary == "corrected":
            value -= table[place, ord(" ")] if number else 0.0
            value += table[place + len(own), ord(" ")]
        expected.append(-value / math.log(2))
        place += len(own)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_words_of_a_long_text_keep_half_a_context_before_them():
    config, params = model()
    tokenizer = data.load_tokenizer("bytes")
    words = TEXT.split()
    [got] = score.word_surprisals(config, params, tokenizer, [words], base=math.e)
    ids = [256, *" ".join(words).encode(), 256]
    of_tokens = np.zeros(len(ids))
    for one in score.rolling_windows(len(ids), 40, 20):
        scored = log_probs(config, params, ids[one.begin : one.end])[-one.scored :]
        of_tokens[one.end - one.scored : one.end] = scored
    ends = np.cumsum([len(w.encode()) + 1 for w in words])
    expected = [-part.sum() for part in np.split(of_tokens[1:-1], ends - 1)[: len(words)]]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_pieces_of_a_bpe_are_given_to_the_words_they_spell():
    from jaxllm.score.words import _align

    tokenizer = data.load_tokenizer("gpt2")
    words = ["Uncharacteristically", "naïve,", "日本語", "OK"]
    ids, word_of = _align(tokenizer, words)
    spelled = [tokenizer.decode(ids[word_of == i]).strip() for i in range(len(words))]
    assert spelled == words


BYTES = data.load_tokenizer("bytes")


class Odd:
    """A tokenizer whose tokens of a text, whatever it says, end at these characters."""

    eos_id = 256

    def __init__(self, *ends):
        self.ends = np.array(ends)

    def encode_with_ends(self, text):
        return np.arange(len(self.ends)), self.ends


def of_ids(config, params, tokenizer, words):
    return score.word_surprisals(config, params, tokenizer, [words], begin=0)


def test_a_text_of_no_words_has_no_surprisals():
    none, one = score.word_surprisals(*model(), BYTES, [[], ["a"]])
    assert len(none) == 0 and len(one) == 1


def test_prepared_parameters_and_a_decoder_score_alike():
    config, params = model()
    sequences, contexts = [random_ids(30), random_ids(7)], [[1, 2, 3], random_ids(5)]
    choices = [[[4], [5, 6]], [[7, 8]]]
    expected = score.score_sequences(config, params, sequences)
    scored = score.score_choices(config, params, contexts, choices)
    for given in (score.prepare(config, params), Decoder(config, params).params):
        for one, other in zip(score.score_sequences(config, given, sequences), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        for some, others in zip(score.score_choices(config, given, contexts, choices), scored, strict=True):
            np.testing.assert_allclose([a.log_prob for a in some], [a.log_prob for a in others], atol=1e-5)


def test_no_input_gives_no_answer():
    config, params = model()
    decoder = Decoder(config, params)
    assert score.score_choices(config, params, [], []) == []
    assert score.score_combined_choices(decoder, decoder, Suppress(), [], [], state=suppression()) == []
    nothing = score.score_combined_choices(decoder, decoder, Suppress(), [[1]], [[]], state=suppression())
    assert nothing == score.score_choices(config, params, [[1]], [[]]) == [[]]
    assert score.label_log_probs(config, params, [], [[1], [2, 3]]).shape == (0, 2)


def test_batches_hold_every_row_once_within_their_shape():
    lengths = np.random.default_rng(0).integers(1, 300, 200).tolist()
    seen, computed = [], 0
    for batch in length_batches(lengths, longest=300, tokens_per_batch=1024):
        assert len(batch.rows) <= batch.size and batch.size * batch.length <= 1024
        assert max(lengths[row] for row in batch.rows) <= batch.length <= 300
        seen += batch.rows
        computed += batch.size * batch.length
    assert sorted(seen) == list(range(200))
    assert computed < 1.15 * sum(lengths)  # padding


@pytest.mark.parametrize("call, message", [
    (lambda c, p: score.score_sequences(c, p, [[]]), "a sequence is empty"),
    (lambda c, p: score.score_sequences(c, p, [3, 1, 2]), "is not a list of token ids; give a list of such"),
    (lambda c, p: score.score_sequences(c, p, [[1, 257]]), "the id 257; the vocabulary has ids"),
    (lambda c, p: score.score_sequences(c, p, [[-1]]), "the id -1"),
    (lambda c, p: score.score_sequences(c, p, [[1, 1.9]]), "whole numbers"),
    (lambda c, p: score.score_sequences(c, {}, [[1]]), "has none and the config declares"),
    (lambda c, p: score.score_sequences(model(num_heads=2)[0], p, [[1]]), r"has shape \(2, 32, 4, 8\) and"),
    (lambda c, p: score.score_choices(c, p, [[1], [2]], [[[1]]]), "2 contexts and continuations for 1"),
    (lambda c, p: score.score_sequences(c, p, [[1] * 42]), "42 tokens and the model's context holds 40"),
    (lambda c, p: score.score_choices(c, p, [[1] * 39], [[[1, 2, 3]]]), "exceeds the model's 40"),
    (lambda c, p: score.score_choices(c, p, [[1]], [[[]]]), "a continuation is empty"),
    (lambda c, p: score.label_log_probs(c, p, [[1]], [[2], [2]]), "two labels have the same tokens"),
    (lambda c, p: score.rolling_windows(5, 3, 4), "stride is 4"),
    (lambda c, p: score.score_texts(c, p, BYTES, ["a"], window=41), "window is 41"),
    (lambda c, p: score.word_surprisals(c, p, BYTES, [["a b"]]), "'a b' is empty or holds"),
    (lambda c, p: score.word_surprisals(c, p, BYTES, [["a"]], base=1), "base is 1"),
    (lambda c, p: of_ids(c, p, Odd(3, 5), ["a", "b", "c"]), "'b' also holds a part of the word before it"),
    (lambda c, p: of_ids(c, p, Odd(1, 5), ["a", "b", "c"]), "'c' also holds a part of the word before it"),
    (lambda c, p: of_ids(c, p, Odd(1, 3), ["a", "b", "c"]), "gives the word 'c' no token of its own"),
    (lambda c, p: score.score_texts(c, p, None, ["a"]), "no tokenizer"),
    (lambda c, p: score.word_surprisals(c, p, None, [["a"]]), "no tokenizer"),
    (lambda c, p: score.word_surprisals(c, p, BYTES, [["a"]], boundary="no"), "unknown boundary"),
])  # fmt: skip
def test_bad_input_is_told_in_a_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call(*model())
