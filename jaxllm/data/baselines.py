"""What counting alone achieves, in bits per byte: the floor that a trained model must beat.

Both models see exactly the ids that a language model sees, eos included, and both score every id
of the validation split; the divisor is the bytes of its text. A model's own figure leaves out
each document's first token (its mask is 0), so it is lower by about one token a document.
"""

import numpy as np

from jaxllm.data.tokens import Tokens

_CHUNK = 1 << 22  # Ids counted at once, to bound memory on large corpora.


def unigram_bits_per_byte(train: Tokens, valid: Tokens, vocab_size: int) -> float:
    """Return the bits per byte of token frequencies, with one added to each count.

    Examples:
      >>> tokens = Tokens(np.array([0, 1, 0, 1], np.uint16), np.array([0]), num_bytes=4)
      >>> unigram_bits_per_byte(tokens, tokens, vocab_size=2)
      1.0
    """
    counts = _count(train.ids, vocab_size) + 1
    bits = np.log2(counts.sum()) - np.log2(counts)
    return float(_count(valid.ids, vocab_size) @ bits / valid.num_bytes)


def bigram_bits_per_byte(train: Tokens, valid: Tokens, vocab_size: int) -> float:
    """Return the bits per byte of the next token given the last: interpolated Kneser-Ney.

    With c(a, b) how often b followed a, c(a) its sum over b, and N(.) how many distinct pairs:

      p(b | a) = max(c(a, b) - d, 0) / c(a) + d N(a, .) / c(a) p(b)
      p(b) = (N(., b) + 1) / (N(., .) + V),   d = n1 / (n1 + 2 n2)

    where n1 and n2 count the pairs seen once and twice. The first id of a split follows its last,
    an eos like the one before every other document.
    """
    pairs, counts = _count_pairs(train.ids, vocab_size)
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    discount = once / (once + 2 * twice) if once else 0.5
    first, second = np.divmod(pairs, vocab_size)
    total = np.bincount(first, weights=counts, minlength=vocab_size)
    followers = np.bincount(first, minlength=vocab_size)
    preceders = np.bincount(second, minlength=vocab_size)
    backoff = (preceders + 1) / (len(pairs) + vocab_size)

    wanted, times = _count_pairs(valid.ids, vocab_size)
    a, b = np.divmod(wanted, vocab_size)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, counts[place], 0)
    known = total[a] > 0
    denominator = np.where(known, total[a], 1)
    direct = np.maximum(seen - discount, 0) / denominator
    weight = np.where(known, discount * followers[a] / denominator, 1.0)
    bits = -np.log2(direct + weight * backoff[b])
    return float(times @ bits / valid.num_bytes)


def _count(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(ids), _CHUNK):
        counts += np.bincount(ids[start : start + _CHUNK], minlength=vocab_size)
    return counts


def _count_pairs(ids: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs, sorted, as first * vocab_size + second, and their counts."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(ids), _CHUNK):
        second = np.asarray(ids[start : start + _CHUNK], np.int64)
        before = ids[start - 1]  # At 0 this is the last id of all.
        first = np.concatenate([[np.int64(before)], second[:-1]])
        new, times = np.unique(first * vocab_size + second, return_counts=True)
        pairs, where = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        merged = np.concatenate([counts, times])
        counts = np.bincount(where, weights=merged).astype(np.int64)
    return pairs, counts
