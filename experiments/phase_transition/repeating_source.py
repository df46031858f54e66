"""Text that repeats itself, and a simulated reader whose memory is known: the oracle of the phase transition.

A bigram chain writes the text; three sequences in four are a span of it tiled, with a period of their own.
The reader knows the chain and does not notice repeats, so that a model which copies stops resembling it.
"""

from dataclasses import dataclass

import numpy as np

SHORTEST, LONGEST = 8, 32  # tokens of a span
_TILED = 0.75  # of the sequences
_INTERCEPT, _PER_BIT, _PER_LOG_FREQUENCY, _PER_LENGTH, _NOISE = 300.0, 6.0, -3.0, 4.0, 30.0  # milliseconds


@dataclass(frozen=True, eq=False)
class RepeatingSource:
    """A bigram chain over V tokens, which readers take as words of some length."""

    bigram_VV: np.ndarray  # row: the distribution after that token
    unigram_V: np.ndarray
    lengths_V: np.ndarray


def make_source(seed: int, vocab_size: int = 64) -> RepeatingSource:
    """Return a chain whose rows are Dirichlet(2), mixed with a common unigram, a tenth of each row."""
    draw = np.random.default_rng([seed, 0])
    unigram = draw.dirichlet(np.full(vocab_size, 2.0))
    rows = draw.dirichlet(np.full(vocab_size, 2.0), size=vocab_size)
    return RepeatingSource(0.9 * rows + 0.1 * unigram, unigram, draw.integers(2, 10, vocab_size))


def draw_sequences(
    source: RepeatingSource, draw: np.random.Generator, rows: int, length: int, tiled: float = _TILED
) -> np.ndarray:
    """Return sequences, int32 [rows, length]; a share `tiled` of them repeats its first tokens."""
    cumulative_VV = np.cumsum(source.bigram_VV, axis=1)
    cumulative_VV[:, -1] = 1
    tokens = np.empty((rows, length), np.int32)
    tokens[:, 0] = draw.choice(len(source.unigram_V), size=rows, p=source.unigram_V)
    for t in range(1, length):
        chance = draw.random(rows)
        tokens[:, t] = (cumulative_VV[tokens[:, t - 1]] < chance[:, None]).sum(axis=1)
    return tile_spans(tokens, draw, tiled)


def tile_spans(
    tokens: np.ndarray, draw: np.random.Generator, tiled: float, longest: int = LONGEST
) -> np.ndarray:
    """Return sequences [rows, length]; in a share `tiled` of the rows the first few tokens repeat to the end.

    Each row draws how many, from SHORTEST to `longest`: a fixed lag could be learned without copying.

    Examples:
      >>> tile_spans(np.arange(20)[None], np.random.default_rng(0), 1.0, longest=SHORTEST)
      array([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]])
    """
    rows, length = tokens.shape
    period = draw.integers(SHORTEST, longest + 1, rows)
    period = np.where(draw.random(rows) < tiled, period, length)
    return np.take_along_axis(tokens, np.arange(length) % period[:, None], axis=1)


def reader_controls(source: RepeatingSource, tokens: np.ndarray) -> np.ndarray:
    """Return log frequency and length of each token but the first of its sequence, [rows, length - 1, 2]."""
    read = tokens[:, 1:]
    return np.stack([np.log(source.unigram_V[read]), source.lengths_V[read]], axis=-1)


def bigram_surprisal(source: RepeatingSource, tokens: np.ndarray) -> np.ndarray:
    """Return what the reader expects: bits of each token but the first, [rows, length - 1]."""
    return -np.log2(source.bigram_VV[tokens[:, :-1], tokens[:, 1:]])


def reading_times(source: RepeatingSource, tokens: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return the reader's milliseconds on each token but the first, [rows, length - 1]."""
    controls = reader_controls(source, tokens) @ [_PER_LOG_FREQUENCY, _PER_LENGTH]
    times = _INTERCEPT + controls + _PER_BIT * bigram_surprisal(source, tokens)
    return times + draw.normal(0, _NOISE, times.shape)
