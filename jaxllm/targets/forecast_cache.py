"""Forecasts kept on disk: compiling for a machine takes minutes, and says the same the next time."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import warnings
from importlib import metadata
from pathlib import Path

import jax

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.source_digest import source_digest
from jaxllm.targets.catalog import Target
from jaxllm.targets.forecast import Forecast
from jaxllm.targets.train_step import compile_train_step
from jaxllm.text import TrainConfig
from jaxllm.train import to_dict
from jaxllm.user_cache import user_cache_folder

# Fields of a run that no compiled step depends on.
_IDLE = ("data", "tokenizer", "text_column", "packed", "long_examples", "steps", "stop_after", "seed", "out",
         "eval_every", "eval_batches", "final_eval_batches", "save_every", "keep_last", "keep_best",
         "log_every", "progress", "tensorboard", "profile", "distributed")  # fmt: skip
_COMPILERS = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin",
              "nvidia-cuda-nvcc-cu12")  # fmt: skip
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Settings of jax that change which program is traced.
_JAX = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
        "jax_threefry_partitionable")  # fmt: skip


def cached_forecast(config: TrainConfig, target: Target) -> Forecast:
    """Return `targets.compile_train_step(config, target)`, from the user's cache if it is there.

    Args:
      config: the run, its vocabulary known.
      target: the machine.
    """
    path = user_cache_folder() / "forecasts" / f"{_key(config, target)}.json"
    if path.exists():
        try:
            return Forecast.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            pass  # written by another version, or cut short: made again below
    forecast = compile_train_step(config, target)
    try:
        write_file(path, json.dumps(forecast.to_dict()).encode())
    except UserError as error:
        warnings.warn(f"the forecast is not kept for the next time: {error}", stacklevel=2)
    return forecast


def _key(config: TrainConfig, target: Target) -> str:
    values = {name: value for name, value in to_dict(config).items() if name not in _IDLE}
    target_values = dataclasses.asdict(target)
    flags = {name: os.environ.get(name, "") for name in _FLAGS}
    flags |= {name: getattr(jax.config, name) for name in _JAX}
    known = [values, target_values, _versions(), flags, source_digest(), _own_code(config.optim.name)]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _COMPILERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _own_code(optimizer: str) -> str:
    """Return a hash of the module in which the user wrote "module:function"; "" for a known optimizer."""
    module, _, function = optimizer.partition(":")
    found = importlib.util.find_spec(module) if function else None
    if found is None or not found.has_location:
        return ""
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
