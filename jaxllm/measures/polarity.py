"""Polarity of a text by a lexicon of valences, with the rules of VADER that read plain sentences.

Hutto and Gilbert, "VADER", ICWSM 2014. Kept: negation within three words, words of degree, capitals,
"but", exclamation and question marks. Left out: idioms, emoji, "least", "never so" and "this" before a word.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllm.errors import UserError

CLASSES = "negative", "neutral", "positive"
_NEGATIONS = frozenset(
    "aint arent cannot cant couldnt darent despite didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt "
    "neednt neither never none nope nor not nothing nowhere oughtnt rarely seldom shant shouldnt uhuh "
    "wasnt werent "
    "without wont wouldnt".split()
)
_MORE = (
    "absolutely amazingly awfully completely considerably decidedly deeply enormously entirely especially "
    "exceptionally extremely fabulously greatly highly hugely incredibly intensely majorly more most "
    "particularly purely quite really remarkably so substantially thoroughly totally tremendously "
    "unbelievably "
    "unusually utterly very"
).split()
_LESS = (
    "almost barely hardly kinda less little marginally occasionally partly scarcely slightly somewhat".split()
)
_DEGREE = dict.fromkeys(_MORE, 0.293) | dict.fromkeys(_LESS, -0.293)
_CAPITALS, _NEGATED, _NORMALISER = 0.733, -0.74, 15.0


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Valences of words, about -4 to 4.

    Examples:
      >>> mood = Lexicon({"good": 1.9, "bad": -2.5})
      >>> mood.classify(["It is good", "It is not good", "It is a chair"])
      array([2, 0, 1])
    """

    valences: Mapping[str, float]

    def valence(self, text: str) -> float:
        """Return a text's valence, -1 to 1."""
        tokens = [_strip(token) for token in text.split()]
        tokens = [token for token in tokens if token]
        words = [token.lower() for token in tokens]
        shouts = any(map(_is_capital, tokens)) and not all(map(_is_capital, tokens))
        values = np.zeros(len(words))
        for at, word in enumerate(words):
            value = self.valences.get(word, 0.0)
            if not value or word in _DEGREE:
                continue
            if shouts and _is_capital(tokens[at]):
                value += np.sign(value) * _CAPITALS
            for distance in range(1, 4):
                before = at - distance
                if before < 0 or words[before] in self.valences:
                    continue
                degree = np.sign(value) * _DEGREE.get(words[before], 0.0)
                value += degree * (1.0, 0.95, 0.9)[distance - 1]
            if any(_negates(words[before]) for before in range(max(0, at - 3), at)):
                value *= _NEGATED
            values[at] = value
        if "but" in words:
            at = words.index("but")
            values[:at] *= 0.5
            values[at + 1 :] *= 1.5
        total = values.sum()
        if total:
            questions = text.count("?")
            asked = 0.0 if questions < 2 else min(0.18 * questions, 0.96)
            total += np.sign(total) * (0.292 * min(text.count("!"), 4) + asked)
        return float(total / np.sqrt(total * total + _NORMALISER))

    def classify(self, texts: Sequence[str], threshold: float = 0.05) -> np.ndarray:
        """Return each text's place in `CLASSES`, int [N]: neutral within the threshold of 0."""
        found = np.array([self.valence(text) for text in texts])
        return 1 + (found >= threshold).astype(int) - (found <= -threshold)


def parse_lexicon(text: str, source: str = "the lexicon") -> Lexicon:
    """Return the lexicon of a file of lines "word TAB valence ...", such as vader_lexicon.txt.

    Raises:
      UserError: a line without a number.
    """
    valences = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        word, *rest = line.split("\t")
        try:
            valences[word.strip()] = float(rest[0])
        except (IndexError, ValueError):
            raise UserError(
                f"line {number} of {source} is {line[:60]!r}; expected a word, a tab and a number"
            ) from None
    if not valences:
        raise UserError(f"{source} holds no word; expected lines of a word, a tab and a number")
    return Lexicon(valences)


def load_vader(path: str | os.PathLike | None = None) -> Lexicon:
    """Return VADER's lexicon, of a file or of the package vaderSentiment (extra `studies`).

    Raises:
      UserError: neither is there.
    """
    if path is None:
        from importlib import metadata

        try:
            path = metadata.distribution("vaderSentiment").locate_file("vaderSentiment/vader_lexicon.txt")
        except metadata.PackageNotFoundError:
            raise UserError(
                "the package vaderSentiment, which holds the lexicon, is not installed; pip install "
                "'jaxllm[studies]', or give the path of a vader_lexicon.txt"
            ) from None
    try:
        return parse_lexicon(Path(path).read_text(encoding="utf-8"), f"'{path}'")
    except OSError as error:
        raise UserError(
            f"cannot read the lexicon '{path}' ({error.strerror}); give a file of words"
        ) from error


def _strip(token: str) -> str:
    """Return a token without the punctuation around it; an emoticon stays."""
    bare = token.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…“”‘’")
    return token if len(bare) < 1 else bare


def _is_capital(token: str) -> bool:
    return token.isupper() and len(token) > 1


def _negates(word: str) -> bool:
    return word.replace("'", "").replace("’", "") in _NEGATIONS or bool(re.search(r"n['’]t$", word))
