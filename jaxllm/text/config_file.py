"""A training run's config as a file, written by a run, a plan or a person, for `jaxllm train --config`."""

import os
import re
from pathlib import Path
from typing import Any

from jaxllm.config import from_plain
from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.json_file import read_bounded, read_json
from jaxllm.models.presets import derived_fields
from jaxllm.text.config import TrainConfig
from jaxllm.text.presets import TRAIN_PRESETS
from jaxllm.train.config import to_dict
from jaxllm.train.folder import CONFIG_FILE

_MOST_BYTES = 2**24


def read_config(path) -> TrainConfig:
    """Return the config in a JSON or YAML file, or that of a run's folder; a field not in it has its default.

    `preset: NAME` in it gives the values to start from, as `--preset` does.

    Raises:
      UserError: no such file, neither JSON nor YAML, or a field or value that a run does not know.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"the folder '{path}' has no {CONFIG_FILE}; give a run's --out folder, or a file")
        path = path / CONFIG_FILE
    is_yaml = path.suffix in (".yaml", ".yml")
    values = _read_yaml(path) if is_yaml else read_json(path)
    if "preset" in values:
        name, values = values["preset"], {k: v for k, v in values.items() if k != "preset"}
        if not isinstance(name, str) or name not in TRAIN_PRESETS:
            raise unknown(f"preset in {path}:", name, TRAIN_PRESETS)
        values = _merged(_preset(name), values)
    return config_from_dict(values, str(path))


def config_from_dict(values: dict[str, Any], source: str = "config") -> TrainConfig:
    """Return the config that `to_dict` turned into plain values.

    Args:
      values: field to value, nested ones as dicts.
      source: where they come from, for messages.
    """
    return from_plain(TrainConfig, values, source)


def _preset(name: str) -> dict[str, Any]:
    config = TRAIN_PRESETS[name]()
    values, derived = to_dict(config), derived_fields(config.model)
    values["model"] = {k: v for k, v in values["model"].items() if k not in derived}
    return values


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {k: v for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return below | above | {name: _merged(below[name], value) for name, value in both.items()}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 6e-4 as the number it is; to YAML 1.1, for want of a dot, it is a text."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    content = read_bounded(path, _MOST_BYTES)
    try:
        values = yaml.load(content, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not YAML ({bare(' '.join(str(error).split()), 160)})") from error
    if not isinstance(values, dict):
        raise UserError(f"'{path}' holds {brief(values)} where names and values were expected")
    return values
