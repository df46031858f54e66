"""The one kind of error that bad input raises: a sentence that says what to do."""

import difflib
from collections.abc import Iterable

_LONGEST = 2000  # characters of a message; a list of all optimizers takes 600


class UserError(ValueError):
    """Bad input, told in one sentence: the value, what was expected, what to do.

    Command lines print it as `error: ...` and exit with code 2; from Python it is a ValueError. Text from
    outside goes through `brief`. What slips in otherwise, in another library's message, say, stays on one
    line, and a message that is too long loses its middle, not the advice at its end.
    """

    def __init__(self, message: object):
        text = _on_one_line(str(message))
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST * 2 // 3]} ... {text[-_LONGEST // 4 :]}"
        super().__init__(text)


def brief(value: object, limit: int = 80) -> str:
    """Return a value from outside as Python writes it, cut to `limit` characters: fit for a message.

    Examples:
      >>> brief([1, 2]), brief("two\\nlines"), brief("A" * 100, limit=12)
      ('[1, 2]', "'two\\\\nlines'", "'AAAAAAAA...")
    """
    # A text is cut first: repr of a whole file would take its time.
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def bare(value: object, limit: int = 40) -> str:
    """Return its text without quotes, for a place that has its own, or for another library's message."""
    text = _on_one_line(str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not in `known`, with the closest known name.

    Examples:
      >>> print(unknown("preset", "gtp2", ["gpt2", "gpt2-xl"]))
      unknown preset 'gtp2'; did you mean 'gpt2'? Known: gpt2, gpt2-xl
    """
    known, name = list(known), str(name)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if len(name) <= 200 else []
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"unknown {kind} '{bare(name, 80)}'; {hint}Known: {', '.join(known)}")
