"""Results that are kept beside a run, so that a grid of runs can be interrupted and extended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxllm.atomic import write_file
from jaxllm.train.config import TrainConfig, differences, to_dict


def once(path: str | Path, run: TrainConfig, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `measure()`, or what it returned when it was last called with an equal run.

    Args:
      path: the file that keeps it, JSON.
      run: what the result depends on; another one measures anew.
      measure: takes no arguments; its result must be JSON-able. Infinities and NaN are.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "result.json")
      >>> once(path, TrainConfig(steps=2), lambda: {"loss": 3.0})
      {'loss': 3.0}
      >>> once(path, TrainConfig(steps=2), lambda: {"loss": 1.0})
      {'loss': 3.0}
      >>> once(path, TrainConfig(steps=4), lambda: {"loss": 1.0})
      {'loss': 1.0}
    """
    path = Path(path)
    config = to_dict(run)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if not differences(kept["config"], config):
            return kept["result"]
    result = json.loads(json.dumps(measure()))
    if jax.process_index() == 0:
        write_file(path, json.dumps({"config": config, "result": result}, indent=2).encode())
    return result
