import math
from collections import Counter

import numpy as np
import pytest

from jaxllm import data
from jaxllm.data import baselines


def make_tokens(ids, num_bytes=None) -> data.Tokens:
    return data.Tokens(np.array(ids, np.uint16), np.array([0]), num_bytes or len(ids))


def random_tokens(seed, length, vocab_size) -> data.Tokens:
    rng = np.random.default_rng(seed)
    return make_tokens((vocab_size * rng.random(length) ** 3).astype(int), num_bytes=3 * length)


def unigram_by_hand(train, valid, vocab_size):
    counts = Counter(train.ids.tolist())
    probability = {i: (counts[i] + 1) / (len(train) + vocab_size) for i in range(vocab_size)}
    return -sum(math.log2(probability[i]) for i in valid.ids.tolist()) / valid.num_bytes


def bigram_probability(train, vocab_size):
    """Return p(b | a) of interpolated Kneser-Ney, from dictionaries."""
    ids = train.ids.tolist()
    pairs = Counter(zip([ids[-1], *ids], ids, strict=False))
    times = Counter(pairs.values())
    discount = times[1] / (times[1] + 2 * times[2])
    total = Counter(ids)

    def probability(b, a):
        preceders = sum(pair[1] == b for pair in pairs)
        backoff = (preceders + 1) / (len(pairs) + vocab_size)
        if not total[a]:
            return backoff
        followers = sum(pair[0] == a for pair in pairs)
        return (max(pairs[a, b] - discount, 0) + discount * followers * backoff) / total[a]

    return probability


@pytest.mark.parametrize("chunk", [1 << 22, 64])
def test_both_agree_with_plain_loops(chunk, monkeypatch):
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    train, valid = random_tokens(0, 1000, 40), random_tokens(1, 300, 50)
    expected = unigram_by_hand(train, valid, 50)
    assert data.unigram_bits_per_byte(train, valid, 50) == pytest.approx(expected, rel=1e-9)
    probability = bigram_probability(train, 50)
    ids = valid.ids.tolist()
    bits = -sum(math.log2(probability(b, a)) for a, b in zip([ids[-1], *ids], ids, strict=False))
    expected = bits / valid.num_bytes
    assert data.bigram_bits_per_byte(train, valid, 50) == pytest.approx(expected, rel=1e-9)


def test_the_bigram_is_a_distribution_so_its_figure_is_honest():
    train = random_tokens(0, 500, 30)
    probability = bigram_probability(train, 40)
    for a in (0, 5, 29, 39):
        assert sum(probability(b, a) for b in range(40)) == pytest.approx(1)


def test_what_training_never_saw_costs_finite_bits():
    train, valid = make_tokens([1, 2] * 50), make_tokens([7, 7, 3])
    for baseline in (data.unigram_bits_per_byte, data.bigram_bits_per_byte):
        assert 2 < baseline(train, valid, 10) < 20


@pytest.mark.smoke
def test_a_bigram_knows_more_than_a_unigram_and_both_more_than_nothing():
    corpus = data.prepare("sotu", "bytes", seq_len=64)
    unigram = data.unigram_bits_per_byte(corpus.train, corpus.valid, 257)
    bigram = data.bigram_bits_per_byte(corpus.train, corpus.valid, 257)
    assert 3 < bigram < unigram < 5


def test_two_million_tokens_of_a_large_vocabulary_take_seconds():
    import time

    train, valid = random_tokens(0, 2_500_000, 50257), random_tokens(1, 250_000, 50257)
    start = time.perf_counter()
    assert (
        data.bigram_bits_per_byte(train, valid, 50257)
        < data.unigram_bits_per_byte(train, valid, 50257) + 1
    )
    assert time.perf_counter() - start < 5
