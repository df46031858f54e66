"""Results kept beside a run, so that a grid of runs can be interrupted and extended."""

import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax

from jaxllm import data
from jaxllm.atomic import write_file
from jaxllm.source_digest import source_digest
from jaxllm.text.config import TrainConfig
from jaxllm.train.config import to_dict


def cached_result(
    path: str | Path, run: TrainConfig, measure: Callable[[], dict[str, Any]], **decisive: Any
) -> dict[str, Any]:
    """Return `measure()`, or what it returned when everything that decides it was the same.

    The key is the run, the content of its data and tokenizer (not their paths), the code of the library
    and of the module that defines `measure`, and what else the caller names. A finished run is not
    trained again when the key changes: `train` finds its checkpoint.

    Args:
      path: the file that keeps it, JSON; one that is damaged is written anew.
      run: what is trained.
      measure: takes no arguments; its result must be JSON-able. Infinities and NaN are.
      decisive: whatever else the result depends on, JSON-able: how many batches are scored, the
        fingerprint of another corpus.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "result.json")
      >>> cached_result(path, TrainConfig(), lambda: {"loss": 3.0}, batches=8)
      {'loss': 3.0}
      >>> cached_result(path, TrainConfig(), lambda: {"loss": 1.0}, batches=8)
      {'loss': 3.0}
      >>> cached_result(path, TrainConfig(), lambda: {"loss": 1.0}, batches=16)
      {'loss': 1.0}
    """
    path = Path(path)
    key = _plain(
        run=to_dict(run),
        data=data.fingerprint(run.data, run.tokenizer, run.text_column),
        code=[source_digest(), _module_digest(measure)],
        decisive=decisive,
    )
    kept = _read(path)
    if kept.get("key") == key and "result" in kept:
        return kept["result"]
    result = _plain(**measure())
    if jax.process_index() == 0:
        write_file(path, json.dumps({"key": key, "result": result}, indent=2).encode())
    return result


def _plain(**values) -> dict[str, Any]:
    """Return the values as they come back from a file."""
    return json.loads(json.dumps(values))


def _module_digest(function) -> str:
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    return sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
