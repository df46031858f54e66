"""Polarity of a text by a lexicon of valences, with the rules of VADER that read plain sentences.

Hutto and Gilbert, "VADER", ICWSM 2014. Kept: negation within three words, words of degree, capitals,
"but", exclamation and question marks. Left out: idioms, degrees of two words, emoji, "least", "without
doubt", and what "never so" and "so" or "this" right before a word add to it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllm.errors import UserError

CLASSES = "negative", "neutral", "positive"
_NEGATIONS = frozenset(
    "aint arent cannot cant couldnt darent despite didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt "
    "neednt neither never none nope nor not nothing nowhere oughtnt rarely seldom shant shouldnt uh-uh uhuh "
    "wasnt werent without wont wouldnt".split()
)
_MORE = (
    "absolutely amazingly awfully completely considerable considerably decidedly deeply effing enormous "
    "enormously entirely especially exceptional exceptionally extreme extremely fabulously flippin flipping "
    "frackin fracking frickin fricking friggin frigging fuckin fucking fuggin fugging fully greatly hella "
    "highly hugely incredible incredibly intensely major majorly more most particularly purely quite really "
    "remarkably so substantially thoroughly total totally tremendous tremendously uber unbelievably "
    "unusually utter utterly very"
).split()
_LESS = (
    "almost barely hardly kind-of kinda kindof less little marginal marginally occasional occasionally "
    "partly scarce scarcely slight slightly somewhat sort-of sorta sortof"
).split()
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
        tokens = [_strip(token) for token in text.replace("’", "'").split()]
        words = [token.lower() for token in tokens]
        capital = [token.isupper() for token in tokens]
        shouted = capital if not all(capital) else [False] * len(words)
        values = np.zeros(len(words))
        for at, word in enumerate(words):
            if word not in self.valences or word in _DEGREE or words[at : at + 2] == ["kind", "of"]:
                continue
            value = self.valences[word]
            nearest = words[max(0, at - 3) : at][::-1]
            if "no" in nearest[:2] or (nearest[2:] == ["no"] and nearest[0] in ("or", "nor")):
                value *= _NEGATED
            elif word == "no" and any(after in self.valences for after in words[at + 1 : at + 2]):
                value = 0.0  # it negates the word after it
            if shouted[at]:
                value += _CAPITALS if value > 0 else -_CAPITALS
            for before, near in enumerate(nearest):
                if near in self.valences:
                    continue
                if near in _DEGREE:
                    degree = -_DEGREE[near] if value < 0 else _DEGREE[near]
                    if shouted[at - 1 - before]:
                        degree += _CAPITALS if value > 0 else -_CAPITALS
                    value += degree * (1.0, 0.95, 0.9)[before]
                if near in _NEGATIONS or "n't" in near:
                    value *= _NEGATED
            values[at] = value
        if "but" in words:
            at = words.index("but")
            values[:at] *= 0.5
            values[at + 1 :] *= 1.5
        total = values.sum()
        if total:
            questions = text.count("?")
            asked = 0.96 if questions > 3 else 0.18 * questions * (questions > 1)
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
        return parse_lexicon(Path(path).read_text(encoding="utf-8-sig"), f"'{path}'")
    except OSError as error:
        raise UserError(
            f"cannot read the lexicon '{path}' ({error.strerror}); give a file of words"
        ) from error


def _strip(token: str) -> str:
    """Return a token without the punctuation around it; one of two letters or fewer may be an emoticon."""
    bare = token.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…“”‘’")
    return token if len(bare) <= 2 else bare
