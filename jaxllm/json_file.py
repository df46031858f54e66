"""JSON from outside: an object of bounded size, or one sentence about what is there instead."""

import json
import os
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError, bare, brief


def read_json(path: str | os.PathLike, *, most_bytes: int = 2**24) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      UserError: the file cannot be read, has more than `most_bytes`, is not JSON or holds no object.
    """
    return parse_json(read_bounded(path, most_bytes), brief(os.fspath(path), 300))


def read_bounded(path: str | os.PathLike, most_bytes: int) -> bytes:
    """Return the content of a file.

    Raises:
      UserError: the file cannot be read or has more than `most_bytes`.
    """
    name = brief(os.fspath(path), 300)
    try:
        with Path(path).open("rb") as file:
            text = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with the character 0
        raise UserError(f"cannot read {name} ({getattr(error, 'strerror', None) or error})") from error
    if len(text) > most_bytes:
        raise UserError(f"{name} has more than {most_bytes:,} bytes, too many for what it should hold")
    return text


def parse_json(text: bytes | str, name: str) -> dict[str, Any]:
    """Return the object that a JSON text describes; `name` is for messages.

    Raises:
      UserError: it is not JSON, is nested too deeply for Python's parser, or holds no object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({bare(error, 80)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} holds no JSON object; expected names and values")
    return content
