"""An ideal user who types given texts: what suggestions would have saved.

The cost of help, as every figure here counts it: a key typed is one key; Tab takes the first word of a
suggestion and its space for one key; the right arrow takes all of it for one key; picking the second or
third of a list costs no more than the first. The last word of a text has no space, and none is saved. The
user takes a suggestion if, and only if, it is what comes and saves a key at least.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxllm.write.words import at_caret
from jaxllm.write.writer import Proposal, Suggestion, Writer

Propose = Callable[[str], Sequence[Proposal]]


@dataclass
class Replayed:
    """Counts of a replay; figures are ratios of sums, so that replays can be added."""

    characters: int = 0  # keys without help
    keys: int = 0  # with it
    places: int = 0  # where suggestions could be shown: one a key
    shown: int = 0  # places where any was
    accepted: int = 0
    accepted_characters: int = 0
    wrong: int = 0  # places where some were shown and none was right
    exact: list[int] = field(default_factory=lambda: [0] * 5)  # first suggestions whose first N words came
    long_enough: list[int] = field(default_factory=lambda: [0] * 5)  # first suggestions of N words or more
    seconds: list[float] = field(default_factory=list)  # of each place

    def __add__(self, other: "Replayed") -> "Replayed":
        def added(a, b, name):
            lists = name in ("exact", "long_enough")
            return [x + y for x, y in zip(a, b, strict=True)] if lists else a + b

        names = [f.name for f in dataclasses.fields(self)]
        return Replayed(*(added(getattr(self, name), getattr(other, name), name) for name in names))

    def figures(self, budget: float = 0.05) -> dict[str, float]:
        """Return what a table shows; `budget` in seconds."""
        shown, characters = max(self.shown, 1), max(self.characters, 1)
        milliseconds = 1000 * np.array(self.seconds or [0.0])
        saved = self.characters - self.keys
        values = {
            "saving_rate": saved / characters,
            "shown_per_character": self.shown / characters,
            "coverage": self.shown / max(self.places, 1),
            "acceptance": self.accepted / shown,
            "regret": self.wrong / shown,
            "accepted_length": self.accepted_characters / max(self.accepted, 1),
            "within_budget": float(np.mean(milliseconds <= 1000 * budget)),
        }
        values |= {f"net_value/{rho}": (saved - rho * self.wrong) / characters for rho in (0.0, 0.2, 0.5)}
        values |= {f"p{q}_ms": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}
        words = zip(self.exact, self.long_enough, strict=True)
        return values | {f"exact_match@{n}": hit / max(of, 1) for n, (hit, of) in enumerate(words, 1)}


def replay(
    writer: Writer, texts: Sequence[str], *, count: int = 1, propose: Propose | None = None,
    from_prefix: int = 0, learn: bool = True, feedback: bool = True,
) -> Replayed:  # fmt: skip
    """Type texts with a writer's help.

    Args:
      writer: who suggests, and learns each text when it is done.
      texts: a line each.
      count: suggestions shown at once.
      propose: what a language model says at the end of a text.
      from_prefix: characters of a word that are typed before anything is shown.
      learn: whether the user's own words are learned.
      feedback: whether what is taken and refused is.

    Examples:
      >>> from jaxllm.write import Lexicon, User
      >>> shared = Lexicon()
      >>> shared.learn("pay the invoice")
      >>> found = replay(Writer(shared, User.new()), ["pay the invoice"])
      >>> found.characters, found.keys  # one key took all three words
      (15, 1)
    """
    total = Replayed()
    for text in texts:
        total.characters += len(text)
        at, taken, shown_before = 0, [], None
        while at < len(text):
            before = text[:at]
            begin = time.perf_counter()
            shown: list[Suggestion] = []
            if len(at_caret(before).prefix) >= from_prefix:
                proposals = propose(before) if propose is not None else ()
                shown = writer.suggest(before, count, proposals)
            total.seconds.append(time.perf_counter() - begin)
            total.places += 1
            _count_words(total, shown, text[at:])
            best = max(((_gain(one, text[at:]), -n) for n, one in enumerate(shown)), default=(0, 0))
            gain, suggestion = best[0], shown[-best[1]] if shown else None
            total.keys += 1
            if shown:
                total.shown += 1
                total.wrong += gain < 1
            if gain > 1 and suggestion is not None:
                total.accepted += 1
                total.accepted_characters += gain
                if feedback:
                    writer.accepted(before, suggestion)
                taken.append((at, at + gain))
                at, shown_before = at + gain, None
                continue
            if feedback and shown and gain < 1 and shown[0].word != shown_before:
                writer.rejected(before, shown[0])  # once for a word that stays while letters are typed
                shown_before = shown[0].word
            at += 1
        if learn:
            writer.learn(text, accepted_words(text, taken))
    return total


def accepted_words(text: str, taken: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which words of a text were taken from suggestions, at least in half of their letters.

    Examples:
      >>> accepted_words("pay the invoice", [(5, 15)])
      [False, True, True]
    """
    found, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        inside = sum(max(0, min(at + len(word), end) - max(at, begin)) for begin, end in taken)
        found.append(2 * inside >= len(word))
        at += len(word)
    return found


def _gain(suggestion: Suggestion, coming: str) -> int:
    """Return how many of the coming characters one key takes: all of it, or its first word; 0 if wrong."""
    for text in (suggestion.text, suggestion.first):
        if coming.startswith(text):
            return len(text)
        if coming == text.rstrip(" "):
            return len(coming)
    return 0


def _count_words(total: Replayed, shown: Sequence[Suggestion], coming: str) -> None:
    """Count how many first words of the first suggestion are right, as Smart Compose's ExactMatch@N."""
    if not shown:
        return
    said, comes = shown[0].text.split(), coming.split()
    for n in range(1, min(len(said), 5) + 1):
        total.long_enough[n - 1] += 1
        total.exact[n - 1] += said[:n] == comes[:n]
