"""Forecasts kept on disk: compiling for a machine takes minutes, and says the same the next time."""

import dataclasses
import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

import jaxllm_kernels

import jaxllm
from jaxllm.atomic import write_file
from jaxllm.targets.catalog import Target
from jaxllm.targets.forecast import Forecast
from jaxllm.targets.train_step import compile_train_step
from jaxllm.train import TrainConfig, to_dict
from jaxllm.user_cache import user_cache_folder

# Fields of a run that no compiled step depends on.
_IDLE = ("data", "tokenizer", "text_column", "steps", "stop_after", "seed", "out", "eval_every",
         "eval_batches", "final_eval_batches", "save_every", "keep_last", "keep_best", "log_every",
         "progress", "tensorboard", "profile", "distributed")  # fmt: skip
_COMPILERS = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def cached_forecast(config: TrainConfig, target: Target, compile=None):
    """Return `targets.compile_train_step(config, target)`, from the user's cache if it is there.

    Args:
      config: the run, its vocabulary known.
      target: the machine.
      compile: (config, target) -> Forecast, instead of `compile_train_step`.
    """
    path = user_cache_folder() / "forecasts" / f"{_key(config, target)}.json"
    if path.exists():
        try:
            return Forecast.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            pass  # written by another version, or cut short: made again below
    forecast = (compile or compile_train_step)(config, target)
    write_file(path, json.dumps(forecast.to_dict()).encode())
    return forecast


def _key(config: TrainConfig, target: Target) -> str:
    values = {name: value for name, value in to_dict(config).items() if name not in _IDLE}
    target_values = dataclasses.asdict(target)
    known = [values, target_values, _versions(), _source_digest()]
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


@functools.cache
def _source_digest() -> str:
    """Return a hash of this library's code: any change of it may change a compiled step."""
    digest = hashlib.sha256()
    for package in (jaxllm, jaxllm_kernels):
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
