"""Kneser-Ney counted as texts come, against Kneser-Ney counted at once."""

import collections

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.write import NGrams

D = 0.75


def texts(seed=0, count=40):
    draw = np.random.default_rng(seed)
    return [[f"w{min(7, n)}" for n in draw.geometric(0.3, draw.integers(2, 7))] for _ in range(count)]


def kneser_ney(corpus, order):
    """Return P(word, context) of Kneser-Ney from all grams at once."""
    grams = [collections.defaultdict(set) for _ in range(order)]
    top = collections.Counter()
    for words in corpus:
        padded = ["\n"] * (order - 1) + [*words, "\n"]
        for end in range(order - 1, len(padded)):
            top[tuple(padded[end - order + 1 : end + 1])] += 1
    for gram in top:
        for length in range(1, order):  # what stood before each shorter gram
            grams[length][gram[-length:]].add(gram[-length - 1])

    def count(gram):
        return top[gram] if len(gram) == order else len(grams[len(gram)][gram])

    vocabulary = sorted({gram[-1] for gram in top})

    def probability(word, context):
        counts = np.array([count((*context, v)) for v in vocabulary], float)
        if not context:
            return count((word,)) / counts.sum()
        lower = probability(word, context[1:])
        if not counts.sum():
            return lower
        held = np.minimum(counts, D).sum()
        return (max(count((*context, word)) - D, 0) + held * lower) / counts.sum()

    return probability, vocabulary


@pytest.mark.parametrize("order", [1, 2, 4])
def test_counted_text_by_text_is_counted_at_once(order):
    corpus, grams = texts(), NGrams(order=order)
    for words in corpus:
        grams.learn(words)
    expected, vocabulary = kneser_ney(corpus, order)
    for words in corpus[:10]:
        context = ["\n"] * (order - 1) + words
        context = tuple(context[len(context) - order + 1 :]) if order > 1 else ()
        mine = [grams.probability(word, words) for word in vocabulary]
        np.testing.assert_allclose(mine, [expected(word, context) for word in vocabulary], atol=1e-12)
        assert sum(mine) == pytest.approx(1)
        mass = grams.prefix_probability("w", words)
        assert mass == pytest.approx(1 - expected("\n", context))


def test_candidates_are_the_likeliest_of_a_prefix():
    grams = NGrams(order=3)
    for words in texts(1) + [["apple", "april"], ["apple", "apron"], ["apt"]]:
        grams.learn(words)
    found = grams.candidates(["apple"], "ap", 5)
    everything = {word: grams.probability(word, ["apple"]) for word in ("apple", "april", "apron", "apt")}
    total = sum(everything.values())
    assert dict(found) == pytest.approx({word: p / total for word, p in everything.items()})
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert grams.candidates([], "zz", 3) == []


def test_removing_by_forgetting_leaves_what_was_never_there():
    first, second = texts(2, 20), texts(3, 20)
    both, alone = NGrams(order=3), NGrams(order=3)
    for words in first:
        both.learn(words, weight=1e-3)
    both.forget(0.5)
    assert both.size == 0 and both.candidates([], "", 3) == []
    for words in second:
        both.learn(words)
        alone.learn(words)
    assert dict(both.grams()) == dict(alone.grams())
    assert [both.probability("w1", words) for words in second] == pytest.approx(
        [alone.probability("w1", words) for words in second], abs=1e-12
    )


@pytest.mark.parametrize("order", [1, 3])
def test_a_text_of_no_weight_was_never_there(order):
    grams, alone = NGrams(order=order), NGrams(order=order)
    for words in texts(6, 5):
        grams.learn(words)
        alone.learn(words)
    grams.learn(["w1", "never", "w1"], weight=0)
    assert dict(grams.grams()) == dict(alone.grams()) and grams.size == alone.size
    assert grams.candidates(["w1", "never"], "", 9) == alone.candidates(["w1", "never"], "", 9)
    assert grams.candidates(["w1"], "n", 9) == []


def test_grams_make_the_model_anew():
    grams, copy = NGrams(order=3), NGrams(order=3)
    for words in texts(4):
        grams.learn(words)
    for gram, weight in grams.grams():
        copy.add(gram, weight)
    for words in texts(5):
        assert copy.probability(words[-1], words[:-1]) == pytest.approx(
            grams.probability(words[-1], words[:-1]), abs=1e-12
        )


def test_memory_is_bounded_and_the_frequent_stay():
    grams = NGrams(order=2, most=50)
    for number in range(200):
        grams.learn(["keep", "this"])
        grams.learn([f"once{number}"])
    assert grams.size <= 50 and grams.candidates(["keep"], "", 1)[0][0] == "this"


def test_bad_input_is_told():
    with pytest.raises(UserError, match="order=0"):
        NGrams(order=0)
    with pytest.raises(UserError, match="a gram of 2 words"):
        NGrams(order=3).add(("a", "b"), 1.0)
    with pytest.raises(UserError, match="share is 2"):
        NGrams().forget(2)
