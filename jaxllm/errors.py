"""The one kind of error that bad input raises: a sentence that says what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, told in one sentence: the value, what was expected, what to do.

    Command lines print it as `error: ...` and exit with code 2; from Python it is a ValueError.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not in `known`, with the closest known name.

    Examples:
      >>> print(unknown("preset", "gtp2", ["gpt2", "gpt2-xl"]))
      unknown preset 'gtp2'; did you mean 'gpt2'? Known: gpt2, gpt2-xl
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"unknown {kind} '{name}'; {hint}Known: {', '.join(known)}")
