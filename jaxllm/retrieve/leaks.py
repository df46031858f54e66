"""Which retrieved texts hold the query itself: a gain from those is copying."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxllm.errors import UserError


@dataclass(frozen=True)
class Leaks:
    """Near-exact matches between queries and what was retrieved for them."""

    shared: list[float]  # of each query, the largest part of it that one neighbour holds
    found: list[int | None]  # of each query, which neighbour that is; None: below the limit
    limit: float

    @property
    def rate(self) -> float:
        """Which part of the queries has a near-exact match."""
        return sum(place is not None for place in self.found) / len(self.found)


def shared_part(query: str, text: str, words: int = 8) -> float:
    """Return which part of a query's runs of `words` words, case and punctuation aside, stands in a text.

    Examples:
      >>> shared_part("one two three four", "Zero, one, two: three!", words=3)
      0.5
    """
    asked, given = _words(query), _words(text)
    size = min(words, len(asked))  # a shorter query is one run
    runs, held = (
        {tuple(some[at : at + size]) for at in range(len(some) - size + 1)} for some in (asked, given)
    )
    return len(runs & held) / len(runs) if asked else 0.0


def find_leaks(
    queries: Sequence[str], neighbours: Sequence[Sequence[str]], *, limit: float = 0.5, words: int = 8
) -> Leaks:
    """Report the queries that are leaked: a single neighbour repeats `limit` of their text or more.

    Args:
      queries: the documents that are scored.
      neighbours: the texts retrieved for each.
      limit: the shared part from which on a match counts as near-exact.
      words: see `shared_part`.

    Raises:
      UserError: no queries, not one list of neighbours each, or a limit that is no part of a query.
    """
    if not len(queries) or len(queries) != len(neighbours):
        lists = f"{len(queries)} queries and {len(neighbours)} lists of neighbours"
        raise UserError(f"{lists}; give one list a query")
    if not 0 < limit <= 1:
        raise UserError(f"limit is {limit}; it must be above 0 and at most 1, a part of a query")
    shared, found = [], []
    for query, texts in zip(queries, neighbours, strict=True):
        parts = [shared_part(query, text, words) for text in texts] or [0.0]
        best = max(range(len(parts)), key=parts.__getitem__)
        shared.append(parts[best])
        found.append(best if parts[best] >= limit else None)
    return Leaks(shared, found, limit)


def _words(text: str) -> list[str]:
    return "".join(letter.lower() if letter.isalnum() else " " for letter in text).split()
