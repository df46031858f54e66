"""A training run's config as a JSON file, which a plan writes and `jaxllm train --config` reads."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from jaxllm.errors import UserError, unknown
from jaxllm.models import ModelConfig
from jaxllm.train.config import TrainConfig, model_from_dict


def read_config(path) -> TrainConfig:
    """Return the config in a JSON file; a field that is not in it has its default.

    Raises:
      UserError: no such file, not JSON, or a field or value that a run does not know.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"cannot read a config from '{path}' ({error}); give a plan's JSON file") from error
    return config_from_dict(values, str(path))


def config_from_dict(values: dict[str, Any], source: str = "config") -> TrainConfig:
    """Return the config that `to_dict` turned into plain values.

    Args:
      values: field to value, nested ones as dicts.
      source: where they come from, for messages.
    """
    return _build(TrainConfig, values, source)


def _build(kind: type, values: Any, source: str):
    if not isinstance(values, dict):
        raise UserError(f"{source} holds {type(values).__name__} where an object of fields was expected")
    kinds = get_type_hints(kind)
    for name in values:
        if name not in kinds:
            raise unknown(f"field in {source}:", name, kinds)
    nested = [name for name in values if dataclasses.is_dataclass(kinds[name])]
    values = values | {name: _build(kinds[name], values[name], f"{source}: {name}") for name in nested}
    try:
        return model_from_dict(values) if kind is ModelConfig else kind(**values)
    except UserError:
        raise
    except TypeError as error:
        raise UserError(f"{source}: a value is of the wrong type ({error})") from error
