"""A training run's config as a JSON file, which a plan writes and `jaxllm train --config` reads."""

import os
from typing import Any

from jaxllm.config import from_plain
from jaxllm.json_file import read_json
from jaxllm.text.config import TrainConfig


def read_config(path) -> TrainConfig:
    """Return the config in a JSON file; a field that is not in it has its default.

    Raises:
      UserError: no such file, not JSON, or a field or value that a run does not know.
    """
    path = os.path.expanduser(path)
    return config_from_dict(read_json(path), path)


def config_from_dict(values: dict[str, Any], source: str = "config") -> TrainConfig:
    """Return the config that `to_dict` turned into plain values.

    Args:
      values: field to value, nested ones as dicts.
      source: where they come from, for messages.
    """
    return from_plain(TrainConfig, values, source)
