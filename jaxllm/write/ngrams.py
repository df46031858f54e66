"""Interpolated Kneser-Ney over words, counted as texts come, with forgetting and a bound on its memory."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxllm.errors import UserError

BOUND = "\n"  # stands before a text's first word, and is what follows its last
_TOP = 12  # words of a row that are candidates for a prefix
_GONE = 0.05  # a count that was forgotten


class Match(NamedTuple):
    """The words of a row that start with a prefix."""

    mass: float  # their counts, each less the row's discount
    top: tuple[str, ...]  # the most frequent


class _Row:
    """Counts of the words seen after one context."""

    __slots__ = ("_matches", "counts", "discount", "held", "total")

    def __init__(self, discount: float):
        self.discount, self.counts, self.total, self.held = discount, {}, 0.0, 0.0
        self._matches: dict[str, Match] = {}

    def set(self, word: str, count: float) -> None:
        before = self.counts.get(word, 0.0)
        self.total += count - before
        self.held += min(count, self.discount) - min(before, self.discount)
        if count:
            self.counts[word] = count
        else:
            del self.counts[word]
        for end in range(len(word) + 1 if self._matches else 0):
            self._matches.pop(word[:end], None)

    def starting(self, prefix: str) -> Iterable[str]:
        return [word for word in self.counts if word.startswith(prefix)]

    def match(self, prefix: str) -> Match:
        """Return what starts with a prefix; counted once until one of those words changes."""
        if prefix not in self._matches:
            words = self.starting(prefix)
            if not words:
                return Match(0.0, ())
            mass = sum(max(self.counts[word] - self.discount, 0.0) for word in words)
            top = heapq.nlargest(_TOP, words, key=self.counts.__getitem__)
            self._matches[prefix] = Match(mass, tuple(top))
        return self._matches[prefix]


class _Root(_Row):
    """The row of no context, which holds every word: found by first letter."""

    __slots__ = ("_letters",)

    def __init__(self):
        super().__init__(0.0)
        self._letters: dict[str, dict[str, None]] = {}

    def set(self, word: str, count: float) -> None:
        super().set(word, count)
        if count:
            self._letters.setdefault(word[:1], {})[word] = None
        else:
            del self._letters[word[:1]][word]

    def starting(self, prefix: str) -> Iterable[str]:
        words = self._letters.get(prefix[:1], {}) if prefix else self.counts
        return [word for word in words if word.startswith(prefix)]


class NGrams:
    """An n-gram model that learns a text at a time.

    The longest contexts hold weights of what was seen; shorter ones how many different words stood before,
    as Kneser and Ney's do. P(w | h) = (max(c - d, 0) + sum_v min(c_v, d) P(w | h')) / sum_v c_v, where h' is
    h without its oldest word. Of order 1 it is a trie of words with their frequencies; of characters in place
    of words it is a model of spelling.

    Attributes:
      order: words of a gram, the predicted one included.
      most: grams that are held; beyond, those of the least weight go, the oldest first.
      size: grams held.

    Examples:
      >>> grams = NGrams(order=3)
      >>> grams.learn("send the invoice".split()); grams.learn("send the receipt".split())
      >>> grams.learn("see the invoice".split())
      >>> grams.candidates(["send", "the"], "", 2)
      [('invoice', 0.48...), ('receipt', 0.23...)]
      >>> grams.candidates(["the"], "r", 1)
      [('receipt', 1.0)]
    """

    def __init__(self, order: int = 4, discount: float = 0.75, most: int = 1_000_000):
        if order < 1 or not 0 < discount < 1 or most < 1:
            raise UserError(
                f"order={order}, discount={discount} and most={most} make no n-gram model; order and most "
                "are at least 1, the discount lies between 0 and 1"
            )
        self.order, self.discount, self.most, self.size = order, discount, most, 0
        self._rows: dict[tuple[str, ...], _Row] = {}
        self._root = self._rows[()] = _Root()

    def __repr__(self) -> str:
        return f"NGrams(order={self.order}, {self.size:,} grams)"

    def learn(self, words: Sequence[str], weight: float = 1.0) -> None:
        """Count a whole text; what was accepted rather than typed may weigh less."""
        self.learn_weighted(words, [weight] * len(words))

    def learn_weighted(self, words: Sequence[str], weights: Sequence[float]) -> None:
        """Count a whole text, each word by a weight of its own."""
        padded = [BOUND] * (self.order - 1) + [*words, BOUND]
        for at, weight in enumerate([*weights, weights[-1] if len(weights) else 1.0]):
            self.add(tuple(padded[at : at + self.order]), weight)

    def add(self, gram: tuple[str, ...], weight: float) -> None:
        """Count one gram of `order` words."""
        if len(gram) != self.order:
            raise UserError(f"a gram of {len(gram)} words cannot be counted by a model of order {self.order}")
        self._add(gram[:-1], gram[-1], weight)
        if self.size > self.most:
            least = heapq.nsmallest(self.size - self.most * 9 // 10, self.grams(), key=lambda one: one[1])
            for old, count in least:
                self._add(old[:-1], old[-1], -count)

    def _add(self, context: tuple[str, ...], word: str, weight: float) -> None:
        row = self._rows.get(context) or _Row(self.discount)
        before = row.counts.get(word, 0.0)
        after = before + weight
        after = after if after > 1e-9 else 0.0
        if after == before:
            return
        self._rows[context] = row
        row.set(word, after)
        if len(context) == self.order - 1:
            self.size += bool(after) - bool(before)
        if context and bool(before) != bool(after):  # one more, or one less, that stood before it
            if not row.counts:
                del self._rows[context]
            self._add(context[1:], word, 1.0 if after else -1.0)

    def grams(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Yield (a gram, its weight): all that this model knows, so that adding them makes it anew."""
        for context, row in self._rows.items():
            if len(context) == self.order - 1:
                for word, count in row.counts.items():
                    yield (*context, word), count

    def forget(self, share: float) -> None:
        """Multiply every weight by a share below 1, once a day say; what has faded goes."""
        if not 0 <= share <= 1:
            raise UserError(f"share is {share}; it is what remains of a weight, from 0 to 1")
        for gram, weight in list(self.grams()):
            left = weight * share
            self._add(gram[:-1], gram[-1], (left if left > _GONE else 0.0) - weight)

    def weight(self, word: str) -> float:
        """Return the word's count without a context: of order 1 its weight, else how many contexts it had."""
        return self._root.counts.get(word, 0.0)

    def probability(self, word: str, context: Sequence[str]) -> float:
        """Return P(word | context); 0 of a word that was never seen."""
        return self.probabilities([word], context)[word]

    def probabilities(self, words: Iterable[str], context: Sequence[str]) -> dict[str, float]:
        """Return P(word | context) of each word."""
        rows, root, found = self._matching(context), self._root, {}
        for word in words:
            chance = root.counts.get(word, 0.0) / root.total if root.total else 0.0
            for row in rows:
                count = row.counts.get(word, 0.0)
                chance = (max(count - row.discount, 0.0) + row.held * chance) / row.total
            found[word] = chance
        return found

    def prefix_probability(self, prefix: str, context: Sequence[str]) -> float:
        """Return the probability that the next word starts with a prefix."""
        if not prefix:
            return 1.0 if self._root.total else 0.0
        chance = self._root.match(prefix).mass / self._root.total if self._root.total else 0.0
        for row in self._matching(context):
            chance = (row.match(prefix).mass + row.held * chance) / row.total
        return chance

    def likely(self, context: Sequence[str], prefix: str) -> dict[str, None]:
        """Return words that start with a prefix, those of the longest context first; no order by chance."""
        words = {}
        for row in (*reversed(self._matching(context)), self._root):
            words |= dict.fromkeys(row.match(prefix).top)
        words.pop(BOUND, None)
        return words

    def candidates(self, context: Sequence[str], prefix: str, count: int) -> list[tuple[str, float]]:
        """Return the likeliest words that start with a prefix, each with P(word | context, prefix)."""
        mass = self.prefix_probability(prefix, context)
        found = self.probabilities(self.likely(context, prefix), context)
        best = heapq.nlargest(count, found.items(), key=lambda one: one[1])
        return [(word, chance / mass) for word, chance in best]

    def longest_match(self, context: Sequence[str], prefix: str, count: int) -> list[str]:
        """Return words by stupid back-off: those of the longest context by count, then of shorter ones."""
        words: dict[str, None] = {}
        for row in (*reversed(self._matching(context)), self._root):
            words |= dict.fromkeys(word for word in row.match(prefix).top if word != BOUND)
            if len(words) >= count:
                break
        return list(words)[:count]

    def _matching(self, context: Sequence[str]) -> list[_Row]:
        """Return the rows of a context's endings that were seen, the shortest first, without the root."""
        if self.order == 1:
            return []
        padded = tuple([BOUND] * (self.order - 1) + list(context[-self.order :]))
        rows = []
        for length in range(1, self.order):
            row = self._rows.get(padded[len(padded) - length :])
            if row is None:
                break
            rows.append(row)
        return rows
