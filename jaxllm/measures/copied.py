"""What a generator copied from its training texts: whole texts, long runs of words.

A suffix array of all training words finds the longest run that each text shares with any of them, exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.errors import UserError
from jaxllm.measures.diversity import words_of


@dataclass(frozen=True, eq=False)
class Copied:
    """What texts share with training texts; case and punctuation aside.

    Attributes:
      exact: whether a text is a training text, bool [N].
      longest: words of the longest run that it shares with one, int [N].
      lengths: its words, int [N].
    """

    exact: np.ndarray
    longest: np.ndarray
    lengths: np.ndarray

    @property
    def exact_rate(self) -> float:
        """The share of texts that are training texts."""
        return float(self.exact.mean())

    def copy_rate(self, words: int = 8) -> float:
        """Return the share of texts that hold a run of so many words of a training text."""
        return float((self.longest >= words).mean())


def find_copies(texts: Sequence[str], training: Sequence[str]) -> Copied:
    """Compare texts with those that a model was trained on.

    Args:
      texts: what it wrote.
      training: what it read; a run never goes over the end of one.

    Raises:
      UserError: either is empty.

    Examples:
      >>> found = find_copies(["The cat sat down!", "A dog sat there"], ["the cat sat down", "a dog ran"])
      >>> found.exact.tolist(), found.longest.tolist()
      ([True, False], [4, 2])
    """
    for name, some in (("texts", texts), ("training", training)):
        if not len(some):
            raise UserError(f"{name} is empty; give at least one text")
    read, rows = [words_of(text) for text in training], [words_of(text) for text in texts]
    ids: dict[str, int] = {}
    words = np.array(
        [i for row in read for i in (*(ids.setdefault(w, len(ids) + 1) for w in row), 0)], np.int64
    )
    order = suffix_array(words)
    whole = {tuple(row) for row in read}
    longest = []
    for row in rows:
        known = np.array([ids.get(word, -1) for word in row], np.int64)
        longest.append(
            max((_longest_prefix(known[at:], words, order) for at in range(len(known))), default=0)
        )
    exact = np.array([tuple(row) in whole for row in rows])
    return Copied(exact, np.array(longest), np.array([len(row) for row in rows]))


def suffix_array(ids: np.ndarray) -> np.ndarray:
    """Return where the suffixes of a sequence of ids begin, in their order: prefix doubling.

    Examples:
      >>> suffix_array(np.array([2, 1, 2, 1]))
      array([3, 1, 2, 0])
    """
    rank, step = np.unique(ids, return_inverse=True)[1].astype(np.int64), 1
    while True:
        after = np.full(len(ids), -1, np.int64)
        after[: -step or None] = rank[step:] if step < len(ids) else after[: -step or None]
        order = np.lexsort((after, rank))
        new = np.concatenate([[False], (np.diff(rank[order]) != 0) | (np.diff(after[order]) != 0)])
        rank[order] = np.cumsum(new)
        if rank.max() == len(ids) - 1 or step >= len(ids):
            return order
        step *= 2


def _longest_prefix(wanted: np.ndarray, words: np.ndarray, order: np.ndarray) -> int:
    """Return how many of the first ids stand somewhere in a row: narrow the suffixes that begin so."""
    low, high = 0, len(order)
    for depth, word in enumerate(wanted):
        if word < 0:
            return depth
        begin, end = (
            _bound(words, order, depth, word, low, high),
            _bound(words, order, depth, word + 1, low, high),
        )
        if begin == end:
            return depth
        low, high = begin, end
    return len(wanted)


def _bound(words, order, depth, word, low, high) -> int:
    """Return the first of the suffixes `low` to `high` whose id at `depth` is not below `word`."""
    while low < high:
        middle = (low + high) // 2
        at = order[middle] + depth
        if at < len(words) and words[at] >= word:
            high = middle
        else:
            low = middle + 1
    return low
