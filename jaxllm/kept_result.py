"""Results kept in a file under a key of everything that decides them, so that a study can be interrupted."""

import functools
import inspect
import json
import sys
import types
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax

from jaxllm.atomic import write_file
from jaxllm.source_digest import source_digest


def kept_result(path: str | Path, measure: Callable[[], dict[str, Any]], **decisive: Any) -> dict[str, Any]:
    """Return `measure()`, or what it returned when everything that decides it was the same.

    The key is the code of the library and of the module that defines `measure` (of `measure` alone in a
    notebook, whose functions are of no file), and what the caller names: settings, fingerprints of models
    and data.

    Args:
      path: the file that keeps it, JSON; one that is damaged is written anew.
      measure: takes no arguments; its result must be JSON-able. Infinities and NaN are; keys that
        are numbers become texts.
      decisive: whatever the result depends on, JSON-able.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "result.json")
      >>> kept_result(path, lambda: {"loss": 3.0}, batches=8)
      {'loss': 3.0}
      >>> kept_result(path, lambda: {"loss": 1.0}, batches=8)
      {'loss': 3.0}
      >>> kept_result(path, lambda: {"loss": 1.0}, batches=16)
      {'loss': 1.0}
    """
    path = Path(path)
    key = _plain({"code": [source_digest(), _code_digest(measure)], "decisive": decisive})
    kept = _read(path)
    if kept.get("key") == key and "result" in kept:
        return kept["result"]
    result = _plain(measure())
    if jax.process_index() == 0:
        write_file(path, json.dumps({"key": key, "result": result}, indent=2).encode())
    return result


def _plain(value: Any) -> Any:
    """Return a value as it comes back from a file."""
    return json.loads(json.dumps(value))


def _code_digest(function) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    return sha256(Path(file).read_bytes() if file else _source(function).encode()).hexdigest()


def _source(function) -> str:
    if not hasattr(function, "__code__"):  # an object that can be called
        function = type(function).__call__
    try:
        return inspect.getsource(function)
    except OSError:  # typed at a prompt
        return _instructions(function.__code__)


def _instructions(code: types.CodeType) -> str:
    constants = [_instructions(x) if isinstance(x, types.CodeType) else repr(x) for x in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
