"""How easy a text reads: words a sentence, syllables a word, Flesch's reading ease."""

import re
from collections.abc import Sequence

from jaxllm.errors import UserError
from jaxllm.measures.diversity import words_of

_VOWELS = re.compile(r"[aeiouy]+")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$|[\"'”’)])")


def syllables(word: str) -> int:
    """Return the syllables of an English word: its groups of vowels, but for most final e's.

    Examples:
      >>> [syllables(word) for word in ("cat", "table", "make", "showers", "idea")]
      [1, 2, 1, 2, 2]
    """
    word = re.sub(r"[^a-z]", "", word.lower())
    if not word:
        return 1
    count = len(_VOWELS.findall(word))
    if re.search(r"[^aeiouy]e$", word) and not re.search(r"[^aeiouy]le$", word):
        count -= 1
    elif re.search(r"[^aeiouytd]ed$", word) or re.search(r"[^aeiouyszxcgh]es$", word):
        count -= 1
    return max(1, count)


def flesch_reading_ease(texts: str | Sequence[str]) -> float:
    """Return Flesch's 206.835 - 1.015 words/sentence - 84.6 syllables/word of all texts together.

    Words after a text's last mark are a sentence too. Syllables are counted by rule, so that a set's score is
    comparable with another's here, and a few points from a dictionary's or a hyphenator's.

    Raises:
      UserError: no words.
    """
    texts = [texts] if isinstance(texts, str) else texts
    rows = [words_of(text) for text in texts]
    words = sum(map(len, rows))
    if not words:
        raise UserError("the texts have no words, and no reading ease; give some")
    sentences = sum(bool(words_of(part)) for text in texts for part in _SENTENCE_END.split(text))
    spoken = sum(syllables(word) for row in rows for word in row)
    return 206.835 - 1.015 * words / sentences - 84.6 * spoken / words
