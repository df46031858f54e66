"""Marks put into text, all of it at once or word by word as it is spoken."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.punctuate.marks import NONE, Marks, plain
from jaxllm.text import Labeller

_ENDS = ",.;:!?…"  # a word that ends so gets no second mark


class Marked(NamedTuple):
    """A word, the mark to put after it, and the probability that the model gives to what then stands there.

    The mark is "" for none, and where the word carries one already.
    """

    word: str
    mark: str
    confidence: float


class Punctuator:
    """A labeller whose labels are marks.

    Args:
      labeller: a model of words' labels, which `train_punctuator` makes.

    Raises:
      UserError: its labels are of texts, or of something else than marks.
    """

    def __init__(self, labeller: Labeller):
        if not labeller.of_words:
            raise UserError("the model labels texts; train one that labels words: punctuate.train_punctuator")
        self.labeller, self.marks = labeller, Marks.of_labels(labeller.config.labels)

    @classmethod
    def load(
        cls, source: str | os.PathLike, checkpoint: Literal["latest", "best"] = "latest", *, overlap: int = 16
    ) -> "Punctuator":
        """Return that of a run of `train_punctuator`, or of a pretrained folder."""
        return cls(Labeller.load(source, checkpoint, overlap=overlap))

    def label(self, words: Sequence[str]) -> list[Marked]:
        """Return the mark to put after each of any number of words; what carries one gets no second."""
        if not len(words):
            return []
        [log_probs_WC] = self.labeller.log_probs([[plain(word) for word in words]])
        return self._said(words, log_probs_WC)

    def punctuate(self, text: str, *, existing: Literal["keep", "replace"] = "keep") -> str:
        """Return a text with marks, its spaces and letters as they are. Once more changes nothing.

        Args:
          text: any length.
          existing: keep marks that are there already and add others, or say all anew.
        """
        return "".join(piece for piece, _ in self.pieces(text, existing=existing))

    def pieces(
        self, text: str, *, existing: Literal["keep", "replace"] = "keep"
    ) -> list[tuple[str, Marked | None]]:
        """Return the text of `punctuate` in pieces, each word's with what was said of it, None of others."""
        tokens = re.findall(r"\S+|\s+", text)
        words = {}
        for place, token in enumerate(tokens):
            word = self.marks.word(token)
            if any(c.isalnum() for c in word.core):
                words[place] = word
        said = dict(zip(words, self.label([word.core for word in words.values()]), strict=True))
        found: list[tuple[str, Marked | None]] = []
        for place, token in enumerate(tokens):
            if place not in words:
                found.append((token, None))
                continue
            word, one = words[place], said[place]
            # A dash or an ellipsis that stands alone marks the word before it.
            followed = place + 2 < len(tokens) and place + 2 not in words
            if (existing == "keep" and word.label != NONE) or followed:
                found.append((token, one))
                continue
            closing = "".join(c for c in word.tail if self.marks.label(c) == NONE)
            found.append((word.core + one.mark + closing, one))
        return found

    def stream(
        self, words: Iterable[str], *, ahead: int = 4, behind: int = 32, every: int = 1
    ) -> Iterator[Marked]:
        """Yield each word with its mark once `ahead` more were heard; what was said is never taken back.

        Args:
          words: as they come; the end of the iterator is the end of an utterance, whose last words are said
            without waiting, so that no mark leaks into the next.
          ahead: words of right context.
          behind: words of left context.
          every: words that are said at once; more cost less, and wait longer.
        """
        heard: list[str] = []
        told = 0
        for word in words:
            heard.append(word)
            if len(heard) - told >= ahead + every:
                yield from self._tell(heard, told, told + every, behind)
                told += every
        if told < len(heard):
            yield from self._tell(heard, told, len(heard), behind)

    def _tell(self, heard: list[str], first: int, last: int, behind: int) -> list[Marked]:
        begin = max(0, first - behind)
        return self.label(heard[begin:])[first - begin : last - begin]

    def _said(self, words: Sequence[str], log_probs_WC: np.ndarray) -> list[Marked]:
        marks = [self.marks.mark(label) for label in self.labeller.config.labels]
        said = []
        for word, log_probs_C in zip(words, log_probs_WC, strict=True):
            own = self.marks.word(word)
            is_bare = own.label == NONE and own.core[-1:] not in _ENDS
            mark = marks[log_probs_C.argmax()] if is_bare else self.marks.mark(own.label)
            said.append(Marked(word, mark if is_bare else "", float(np.exp(log_probs_C[marks.index(mark)]))))
        return said
