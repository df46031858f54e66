"""Results kept beside a run, so that a grid of runs can be interrupted and extended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllm import data
from jaxllm.kept_result import kept_result
from jaxllm.text.config import TrainConfig
from jaxllm.train.config import to_dict

_BY_CONTENT = ("data", "tokenizer", "valid_data")  # in the key as what they hold, wherever it lies


def cached_result(
    path: str | Path, run: TrainConfig, measure: Callable[[], dict[str, Any]], **decisive: Any
) -> dict[str, Any]:
    """Return `measure()`, or what it returned when everything that decides it was the same.

    `kept_result` with the run in its key, and the content of the run's data and tokenizer in place of their
    paths. A finished run is not trained again when the key changes: `train` finds its checkpoint.

    Args:
      path: the file that keeps it.
      run: what is trained.
      measure: takes no arguments; its result must be JSON-able.
      decisive: whatever else the result depends on: how many batches are scored, the fingerprint of
        another corpus.
    """
    content = data.fingerprint(run.data, run.tokenizer, run.text_column, run.valid_data)
    named = {name: value for name, value in to_dict(run).items() if name not in _BY_CONTENT}
    return kept_result(path, measure, run=named, data=content, decisive=decisive)
