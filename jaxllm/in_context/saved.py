"""A trained module in a folder of two small files, its config and parameters; and the one that is shipped."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.atomic import new_file, write_file
from jaxllm.config import from_plain
from jaxllm.errors import UserError
from jaxllm.in_context import reasoner as module
from jaxllm.json_file import read_json
from jaxllm.pretrained.safetensors_file import open_safetensors, write_safetensors

_SHIPPED = Path(__file__).parent / "assets"
_CONFIG, _WEIGHTS = "reasoner.json", "reasoner.safetensors"


class Reasoner(NamedTuple):
    """A trained module. It unpacks as (config, params)."""

    config: module.ReasonerConfig
    params: dict


def save_reasoner(folder: str | os.PathLike, reasoner: Reasoner, about: dict | None = None) -> None:
    """Write a module into a folder, its numbers in float16.

    Args:
      folder: made if it is not there.
      reasoner: the module.
      about: what else is to be known of it, JSON-able: how it was trained.
    """
    folder = Path(folder)
    told = {"config": vars(reasoner.config), "about": about or {}}
    tensors = {name: np.asarray(x, np.float16) for name, x in _by_name(reasoner.params).items()}
    with new_file(folder / _WEIGHTS) as partial:
        write_safetensors(partial, tensors)
    write_file(folder / _CONFIG, (json.dumps(told, indent=2) + "\n").encode())


def load_reasoner(folder: str | os.PathLike | None = None) -> Reasoner:
    """Return the module in a folder; without one, that which is shipped: 16 features, up to 128 pairs.

    The shipped one had an hour of training on one core: on fresh problems it stays 1 to 6 points of accuracy
    below the best ridge, most where labels have little noise (`about` in assets/reasoner.json). Its run is
    `ReasonerRun()`; `python -m experiments.tart` measures any.

    Raises:
      UserError: no module there, or parameters that are missing, left over or of another shape.
    """
    folder = _SHIPPED if folder is None else Path(folder).expanduser()
    if not (folder / _CONFIG).is_file():
        raise UserError(f"'{folder}' holds no {_CONFIG}; give a folder that save_reasoner wrote")
    told = read_json(folder / _CONFIG)
    config = from_plain(module.ReasonerConfig, told.get("config"), str(folder / _CONFIG))
    stored = open_safetensors(folder / _WEIGHTS)
    wanted = jax.eval_shape(lambda: module.init(config, jax.random.key(0)))
    shapes = {name: x.shape for name, x in _by_name(wanted).items()}
    for name in [*shapes, *stored]:
        got = tuple(stored[name].shape) if name in stored else None
        if got != shapes.get(name):
            raise UserError(
                f"'{folder}': '{name}' has the shape {got}, and its config asks for {shapes.get(name)}; the "
                "two files are of different modules"
            )
    paths = jax.tree_util.tree_flatten_with_path(wanted)
    arrays = [jnp.asarray(stored[_name(path)].read(), jnp.float32) for path, _ in paths[0]]
    return Reasoner(config, jax.tree.unflatten(paths[1], arrays))


def _by_name(tree) -> dict:
    return {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
