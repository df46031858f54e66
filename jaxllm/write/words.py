"""Text as the words before the caret and the beginning of one."""

import re
from typing import NamedTuple

_ENDS = re.compile(r"[.!?…][\"'”’)\]]*$")


class Caret(NamedTuple):
    """What stands before the caret."""

    words: tuple[str, ...]  # of the line, whole, in small letters
    prefix: str  # of the word that is being typed, as typed; empty after a space
    starts: bool  # the next word begins a sentence


def at_caret(text: str, most_words: int = 8) -> Caret:
    """Return what stands before a caret at the end of a text; words are what spaces separate.

    Examples:
      >>> at_caret("Dear Ms Lee,\\nPlease send the inv")
      Caret(words=('please', 'send', 'the'), prefix='inv', starts=False)
      >>> at_caret("It came. ")
      Caret(words=('it', 'came.'), prefix='', starts=True)
    """
    line = text[text.rfind("\n") + 1 :]
    begin = max(line.rfind(" "), line.rfind("\t")) + 1
    whole = line[:begin].split()
    starts = not whole or bool(_ENDS.search(whole[-1]))
    return Caret(tuple(word.lower() for word in whole[-most_words:]), line[begin:], starts)


def finished(text: str) -> int:
    """Return how many characters of a text are finished: up to the last line's or sentence's end.

    Examples:
      >>> finished("One. Two"), finished("One\\nTwo. Three"), finished("One"), finished("at 3.5 p")
      (5, 9, 0, 0)
    """
    found = 0
    for match in re.finditer(r"\n|[.!?…][\"'”’)\]]*\s+", text):
        found = match.end()
    return found


def in_case(word: str, prefix: str, starts: bool) -> str:
    """Return the rest of a word after a prefix that may be typed in other letters.

    Examples:
      >>> in_case("invoice", "INV", False), in_case("invoice", "Inv", True), in_case("iPhone", "", True)
      ('OICE', 'oice', 'iPhone')
    """
    rest = word[len(prefix) :]
    return rest.upper() if len(prefix) > 1 and prefix.isupper() and not starts else rest
