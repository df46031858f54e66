"""jaxllm plan"""

import os
import time
from collections.abc import Sequence

from jaxllm.cli.parse import take
from jaxllm.cli.train import parse_config
from jaxllm.errors import UserError
from jaxllm.targets.candidates import Search
from jaxllm.targets.catalog import get_target
from jaxllm.targets.planner import plan
from jaxllm.text import TrainConfig

_DESCRIPTION = """Find the fastest way to train a model, among those that fit a machine that is not here.

  jaxllm plan --preset gpt-neo-2.7b --target v5e-8 --batch 512
  jaxllm plan --preset gpt2 --target h100 --batch 64 --precision any --out gpt2.json
  jaxllm train --config gpt2.json --data tfds:lm1b

Searched: rematerialisation, what lies in the host's memory, the parts a batch is computed in, the mesh,
and the engine; each stays as given where its flag is given (--model.remat, --offload, --accumulate,
--mesh.*, --engine). The best by estimate are compiled, two at a time; steps in tiles (GPT-2 in float32)
are simulated where none of those holds everything on the device.

  --target NAME       the machine: v5e-8, v5p-128, h100x8, ... (required)
  --batch N           sequences a step; the same as --batch-size
  --precision NAMES   policies to choose from, with commas, or any; otherwise the preset's
  --optimizer NAMES   optimizers to choose from, with commas; otherwise the preset's
  --steps N           of the run, for its hours
  --compiles N        plans to compile (2)
  --out FILE          where the chosen config goes (plan.json)

All other options are those of `jaxllm train`."""


def main(argv: Sequence[str]) -> None:
    """Print the ranked plans and write the best one's config."""
    started = time.time()
    options = {}
    for flag in ("--target", "--batch", "--precision", "--optimizer", "--compiles", "--out"):
        argv, options[flag] = take(argv, flag)
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    if options["--batch"] is not None:
        argv = [*argv, "--batch-size", options["--batch"]]
    precisions, optimizers = _names(options["--precision"]), _names(options["--optimizer"])
    config = parse_config(argv, prog="jaxllm plan", description=_DESCRIPTION)
    if options["--target"] is None:
        raise UserError("no machine to plan for; give one with --target, for example --target v5e-8")
    target = get_target(options["--target"])
    found = plan(
        config,
        target,
        Search(
            precisions=precisions,
            compiles=_count(options["--compiles"]),
            optimizers=optimizers or ((config.optim.name,) if "--optim.name" in given else None),
            **_fixed(config, given),
        ),
        progress=config.progress,
    )
    out = os.path.expanduser(options["--out"] or "plan.json")
    found.write(out)
    memory = f"{target.num_devices} x {target.hbm_bytes / 2**30:.2f} GiB"
    batch = f"{config.batch_size} x {config.seq_len} tokens a step"
    print(f"{target.name}, {memory}; {batch}; compiled for it, not run on it\n")
    print(found.table())
    print(f"\n{found.summary()}")
    start = " --start MODEL" * (config.adapts and config.start is None)
    print(f"\n{time.time() - started:.0f} s; start it with: jaxllm train --config {out}{start} --data ...")


def _fixed(config: TrainConfig, given: set[str]) -> dict:
    """Return what the search must leave alone because the command line says it."""
    fixed = {}
    if "--model.remat" in given:
        fixed["remats"] = (config.model.remat,)
    if "--offload" in given:
        fixed["offloads"] = (config.offload,)
    if "--accumulate" in given:
        fixed["accumulates"] = (config.accumulate,)
    if "--engine" in given:
        fixed["engines"] = (config.engine,)
    if any(flag.startswith("--mesh.") for flag in given):
        fixed["meshes"] = (config.mesh,)
    return fixed


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _count(text: str | None) -> int:
    if text is None:
        return Search().compiles
    if not text.isdecimal():
        raise UserError(f"--compiles is '{text}'; it must be a whole number of at least 1")
    return int(text)
