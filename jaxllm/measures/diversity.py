"""How varied a set of texts is, at equal numbers of words: a ratio of types to tokens falls with length."""

import re
from collections import Counter
from collections.abc import Sequence

from jaxllm.errors import UserError

_WORD = re.compile(r"[^\W_]+(?:['\-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Return a text's words in small letters; a hyphen or apostrophe, made straight, inside one is its own.

    Examples:
      >>> words_of("Don't re-read: it's 2 o’clock.")
      ["don't", 're-read', "it's", '2', "o'clock"]
    """
    return _WORD.findall(text.lower().replace("’", "'"))


def distinct_n(texts: Sequence[str], n: int = 1, budget: int | None = None) -> float:
    """Return the share of n-grams of words that are unlike every other before, within texts.

    Args:
      texts: in their order; the first so many words of them count.
      n: words of an n-gram.
      budget: words that count. Sets are comparable only at the same one. None: all of them.

    Raises:
      UserError: fewer words than the budget, or no n-gram.

    Examples:
      >>> distinct_n(["a b a b", "a b"], 2)
      0.5
    """
    rows = [words_of(text) for text in texts]
    total = sum(map(len, rows))
    if budget is not None and total < budget:
        raise UserError(f"the texts have {total} words and the budget is {budget}; give more, or lower it")
    left, grams = total if budget is None else budget, []
    for row in rows:
        row = row[: max(left, 0)]
        left -= len(row)
        grams += [tuple(row[at : at + n]) for at in range(len(row) - n + 1)]
    if not grams:
        raise UserError(f"no text has {n} words, so there is no n-gram of them; give longer texts")
    return len(set(grams)) / len(grams)


def mtld(texts: str | Sequence[str], threshold: float = 0.72) -> float:
    """Return the measure of textual lexical diversity (McCarthy and Jarvis 2010) of all texts in a row.

    The mean length of stretches whose ratio of types to tokens stays above the threshold, read forwards and
    backwards. It depends less on length than the ratio itself.

    Raises:
      UserError: no words.
    """
    row = [w for text in ([texts] if isinstance(texts, str) else texts) for w in words_of(text)]
    if not row:
        raise UserError("the texts have no words, and no diversity; give some")

    def one_way(some):
        factors, seen, count = 0.0, set(), 0
        for word in some:
            count += 1
            seen.add(word)
            if len(seen) / count <= threshold:
                factors, seen, count = factors + 1, set(), 0
        if count:
            factors += (1 - len(seen) / count) / (1 - threshold)
        return len(some) / factors if factors else float(len(some))

    return (one_way(row) + one_way(row[::-1])) / 2


def opening_share(texts: Sequence[str], words: int = 2, commonest: int = 50) -> float:
    """Return the share of texts whose first words are among the set's own commonest openings.

    Examples:
      >>> opening_share(["If you go", "If you stay", "We know"], commonest=1).__round__(3)
      0.667
    """
    openings = Counter(tuple(words_of(text)[:words]) for text in _some(texts))
    return sum(count for _, count in openings.most_common(commonest)) / len(texts)


def loop_share(texts: Sequence[str], n: int = 3) -> float:
    """Return the share of texts that say some n-gram of words twice.

    Examples:
      >>> loop_share(["the only thing is the only thing", "a b c d"])
      0.5
    """

    def loops(text):
        row = words_of(text)
        grams = [tuple(row[at : at + n]) for at in range(len(row) - n + 1)]
        return len(set(grams)) < len(grams)

    return sum(map(loops, _some(texts))) / len(texts)


def mark_share(texts: Sequence[str], mark: str = "?") -> float:
    """Return the share of texts that hold a mark."""
    return sum(mark in text for text in _some(texts)) / len(texts)


def _some(texts: Sequence[str]) -> Sequence[str]:
    if not len(texts):
        raise UserError("the set of texts is empty; give at least one")
    return texts
