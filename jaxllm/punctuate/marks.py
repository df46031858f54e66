"""Which marks there are, and text as words that each carry one or none."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from jaxllm.errors import UserError

NONE = "O"
# Labels of the IWSLT files; any other mark's label is the mark itself.
_NAMES = {",": "COMMA", ".": "PERIOD", "?": "QUESTION", "!": "EXCLAMATION", ":": "COLON", ";": "SEMICOLON"}
# As those files merge them: what is written for a mark that is not in the set.
_MERGED = {":": ",", "-": ",", "–": ",", "—": ",", ";": ".", "!": ".", "…": "."}
_CLOSING = "\"'’”»)]}"


class Word(NamedTuple):
    """A word of a text: its core, then a mark, then what closes it."""

    core: str
    label: str  # NONE, or a mark's
    tail: str  # all that was written after the core: marks, closing quotes and brackets

    @property
    def written(self) -> str:
        """The word as it was written."""
        return self.core + self.tail


@dataclass(frozen=True)
class Marks:
    """A set of marks, one character each, as a string.

    Examples:
      >>> Marks().labels
      ('O', 'COMMA', 'PERIOD', 'QUESTION')
      >>> Marks().read("Well, 3.5 or 1,000? Both!")
      (['Well', '3.5', 'or', '1,000', 'Both'], ['COMMA', 'O', 'O', 'QUESTION', 'PERIOD'])
      >>> Marks("!.").read("Well, no... Both!")[1]
      ['O', 'PERIOD', 'EXCLAMATION']
    """

    marks: str = ",.?"

    def __post_init__(self):
        if not self.marks:
            raise UserError("marks is empty; give some, such as ',.?'")
        for mark in self.marks:
            if mark.isalnum() or mark.isspace():
                kind = "letter" if mark.isalpha() else "digit" if mark.isalnum() else "space"
                raise UserError(
                    f"marks={self.marks!r} has the {kind} {mark!r}, which words are made of; give marks "
                    "alone, such as ',.?'"
                )
        if len(set(self.marks)) < len(self.marks):
            raise UserError(f"marks={self.marks!r} has a mark twice; give each once")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of no mark, and one of each."""
        return (NONE, *(_NAMES.get(mark, mark) for mark in self.marks))

    @classmethod
    def of_labels(cls, labels: tuple[str, ...]) -> "Marks":
        """Return the marks whose labels a model says.

        Raises:
          UserError: labels of something else.
        """
        mark_of = {name: mark for mark, name in _NAMES.items()}
        marks = "".join(mark_of.get(label, label) for label in labels if label != NONE)
        if NONE not in labels or len(marks) != len(labels) - 1:
            raise UserError(
                f"the model's labels are {', '.join(labels)}; expected {NONE} and marks, as "
                "punctuate.train_punctuator makes"
            )
        return cls(marks)

    def mark(self, label: str) -> str:
        """Return what is written for a label."""
        return dict(zip(self.labels, ("", *self.marks), strict=True))[label]

    def label(self, mark: str) -> str:
        """Return the label of a mark, or of the one that it is merged into; NONE of any other character."""
        mark = mark if mark in self.marks else _MERGED.get(mark, "")
        return dict(zip(self.marks, self.labels[1:], strict=True)).get(mark, NONE)

    def word(self, token: str) -> Word:
        """Return what is written between two spaces as a word; marks inside it, as in 3.5, are its own."""
        end = len(token)
        while end and (token[end - 1] in _CLOSING or self.label(token[end - 1]) != NONE):
            end -= 1
        tail = token[end:]
        # The last mark counts ("?!" is "!"), and what only closes is no mark.
        labels = [label for label in map(self.label, tail) if label != NONE]
        return Word(token[:end], labels[-1] if labels else NONE, tail)

    def split(self, text: str) -> list[Word]:
        """Return the words of a text; what has neither letter nor digit belongs to the word before it."""
        words: list[Word] = []
        for token in text.split():
            word = self.word(token)
            if any(c.isalnum() for c in word.core):
                words.append(word)
            elif words:
                core, label, tail = words[-1]
                words[-1] = Word(core, word.label if word.label != NONE else label, f"{tail} {token}")
        return words

    def read(self, text: str) -> tuple[list[str], list[str]]:
        """Return (words without marks, their labels) of marked text."""
        words = self.split(text)
        return [word.core for word in words], [word.label for word in words]


def plain(core: str) -> str:
    """Return a word as the tagger reads it: small letters, without quotes and brackets around it.

    Examples:
      >>> [plain(word) for word in ("“Hello", "(3.5", "it's", "$5")]
      ['hello', '3.5', "it's", '$5']
    """
    return re.sub(r"^[^\w$€£#@&%+-]+|[^\w%]+$", "", core.lower()) or core.lower()
