"""What a run is, in a few lines that a person reads before its first step; and the same as a file."""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import jax
from tqdm import tqdm

from jaxllm.atomic import write_file
from jaxllm.train.config import owner, to_dict
from jaxllm.train.folder import CONFIG_FILE
from jaxllm.train.prepare import Run

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def describe(run: Run) -> list[str]:
    """Return the lines: what the task says of itself (`Run.about`), its size, where it runs and writes."""
    config = run.config
    rows = dict(run.about)
    rows.setdefault("steps", f"{config.steps:,}")
    rows["parameters"] = _parameters(run)
    rows["devices"] = _devices(run.mesh)
    rows["writes to"] = f"{config.out}: {_checkpoints(config)}"
    width = max(map(len, rows))
    return [f"{name:{width}}  {text}" for name, text in rows.items()]


def write_config(run: Run, folder: Path) -> None:
    """Write what the run was told into its folder, without the fields of a class that extends its config."""
    names = [field.name for field in dataclasses.fields(owner(run.config))]
    plain = to_dict(run.config)
    write_file(folder / CONFIG_FILE, json.dumps({name: plain[name] for name in names}, indent=2).encode())


class Compiling:
    """Says that a step is being compiled, and in the end how long it took."""

    def __init__(self, shown: bool):
        self._shown, self._since = shown, time.perf_counter()
        if shown:
            tqdm.write("compiling the step ...", file=sys.stderr)

    def done(self, step: int) -> None:
        """Note that the first step has been taken."""
        if self._shown:
            seconds = time.perf_counter() - self._since
            tqdm.write(f"compiled, and step {step} taken, in {seconds:.1f} s", file=sys.stderr)


def short(count: int) -> str:
    """Return a large number as people say it.

    Examples:
      >>> short(134_515_008), short(6_738_415_616), short(173_056)
      ('134.5M', '6.7B', '173,056')
    """
    scale, unit = next((one for one in _UNITS if count >= one[0]), (1, ""))
    return f"{count / scale:.1f}{unit}" if unit else f"{count:,}"


def _parameters(run: Run) -> str:
    trained, frozen = (
        sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
        for tree in (run.shapes.params, run.shapes.frozen)
    )
    said = f"{trained:,}" + (f" ({short(trained)})" if trained >= 1e6 else "")
    return f"{said} trained, {short(frozen)} frozen ({trained / (trained + frozen):.2%})" if frozen else said


def _devices(mesh: jax.sharding.Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} x {kind}{f', mesh {axes}' if axes else ''}{processes}"


def _checkpoints(config) -> str:
    kept = [f"the last {config.keep_last}" if config.keep_last > 1 else "the last"]
    if config.keep_best:
        kept.append("the best" if config.keep_best == 1 else f"the best {config.keep_best}")
    if config.keep_steps:
        kept.append(f"those of steps {', '.join(map(str, config.keep_steps))}")
    return f"a checkpoint every {config.save_every:,} steps, of which {' and '.join(kept)} are kept"
