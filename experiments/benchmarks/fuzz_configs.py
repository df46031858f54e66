"""Put every wrong value into every field of a plan.json: a run refuses or takes it, and no more.

    python -m experiments.benchmarks.fuzz_configs                 # 3,000 variations, half an hour on 2 cores
    python -m experiments.benchmarks.fuzz_configs --every 40      # a minute

A tiny run's config is written as `jaxllm plan` writes it. Each case changes one field and goes as far as
`jaxllm train --config` goes before it compiles: the config, the data, the shapes of the state, the room for
checkpoints, the first batch. A `UserError` of one short sentence is clean; a run that could start is fine
too; any other exception is a crash. Time and memory of each case are bounded.
"""

import collections
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments.benchmarks.resident_memory import resident_bytes, restart_peak
from jaxllm import models
from jaxllm.cli.experiment import run_experiment
from jaxllm.cli.train import parse_config
from jaxllm.config import Config, Count, Positive, UserPath
from jaxllm.errors import UserError
from jaxllm.parallel import MeshConfig
from jaxllm.report import Claim, Report
from jaxllm.text import TrainConfig, prepare
from jaxllm.train import to_dict
from jaxllm.train.folder import check_room

_HOSTILE = (
    None, True, -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-40,
    float("nan"), float("inf"), "-inf", "", "x", "../../etc/passwd", "\0", "\ud800", "two\nlines",
    "A" * 100_000, [], {}, [[]], [0] * 5, [-1, 2**62], {"a": {"b": []}}, ["x", None], 4096,
)  # fmt: skip
# Names that a field knows, or that look like those.
_NAMES = {
    "precision": ["bfloat16", "mixed_o1", "mixed_o2"], "offload": ["optimizer", "state"],
    "engine": ["tiles"], "norm": ["rmsnorm_scalar"], "attention_implementation": ["cudnn", "reference"],
    "subnetwork": ["est-gpt2-like", "progressive-layer-drop", "layer-dropout", "random-paths"],
    "vocab_groups": ["merge_tree", "frequency:4", "random:99999999999", "merge_tree:x", "3;;eJxjYGBgAA"],
    "name": ["sys:path", "os:getcwd", ".:x", "lion", "lbfgs", "orthoadam", "sgd"],
    "remat": ["full", "offload"], "position": ["rotary", "none"],
    "windows": [[8], [0, 4], [2**28]], "tokenizer": ["char", "bpe:300", "bpe:99999999999999", "bpe:-1"],
    "data": ["tfds:", "tfds:x", "hf:x", "t.txt/x", "*"], "schedule": ["wsd", "linear", "constant"],
    "sink_logit": ["learned", "inf"],
}  # fmt: skip


@dataclass(frozen=True)
class FuzzConfigsConfig(Config):
    """How many variations, and what one may cost."""

    every: Count = 1  # take each so many of the variations
    max_seconds: Positive = 20.0  # for one case
    max_memory: Count = 1024  # MiB that one case may add
    out: UserPath = "runs/fuzz_configs"


def main(config: FuzzConfigsConfig) -> Report:
    """Vary, read, count; write the report into `config.out`."""
    started, out = time.time(), Path(config.out).absolute()
    outcomes, crashes, long, seconds, growth = collections.Counter(), [], [], 0.0, 0.0
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # a data of "." or "*" reads what lies here
        try:
            Path("t.txt").write_text("It was the best of times, it was the worst of times. " * 400)
            plain = tiny_plan()
            for path, value in tqdm(list(variations(plain))[:: config.every], unit="case"):
                Path("plan.json").write_text(json.dumps(changed(plain, path, value)))
                outcome, sentence, took, grown = _try(Path(scratch))
                outcomes[outcome] += 1
                seconds, growth = max(seconds, took), max(growth, grown)
                case = f"{'.'.join(path)} = {repr(value)[:60]}: {outcome} {sentence[:200]}"
                if outcome not in ("clean", "accepted"):
                    crashes.append(case)
                if "\n" in sentence or len(sentence) > 1500:
                    long.append(case)
        finally:
            os.chdir(home)
    report = Report(
        experiment="benchmarks/fuzz_configs", preset="small", config=vars(config), seeds=[],
        metrics={"cases": sum(outcomes.values()), "clean_errors": outcomes["clean"],
                 "accepted": outcomes["accepted"], "crashes": len(crashes), "not_one_sentence": len(long),
                 "max_seconds": seconds, "max_memory_growth_mib": growth},
        claims=[
            Claim("a wrong value gives a clean error", "issue: trust", measured=len(crashes),
                  holds=not crashes and not long),
            Claim("no case takes long", "issue: trust", measured=seconds, holds=seconds < config.max_seconds),
            Claim("memory stays bounded (MiB of growth)", "issue: trust", measured=growth,
                  holds=growth < config.max_memory),
        ],
        seconds=time.time() - started,
        sections={"Crashes": "\n".join(f"- {case}" for case in crashes + long) or "none"},
    )  # fmt: skip
    report.write(out)
    print(f"{dict(outcomes)}, at most {seconds:.1f} s and {growth:.0f} MiB (see {out}/report.md)")
    return report


def tiny_plan() -> dict[str, Any]:
    """Return a config as `jaxllm plan` writes it, of a run on the text t.txt."""
    model = models.get_preset("gpt2-nano", vocab_size=None)
    run = TrainConfig(
        model=model, data="t.txt", tokenizer="bytes", seq_len=16, batch_size=8, steps=4, out="run",
        mesh=MeshConfig(jax.device_count(), 1, 1),
    )  # fmt: skip
    return to_dict(run)


def variations(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path of a field, a value for it), of every field."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from variations(value, (*path, name))
        for one in (*_HOSTILE, *_NAMES.get(name, ())):
            yield (*path, name), one


def changed(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return the tree with one field changed."""
    rest = changed(tree[path[0]], path[1:], value) if len(path) > 1 else value
    return tree | {path[0]: rest}


def _try(folder: Path) -> tuple[str, str, float, float]:
    """Go as far with plan.json as a run goes before it compiles; return (outcome, sentence, seconds, MiB)."""
    started, before = time.time(), restart_peak()
    outcome, sentence = "accepted", ""
    try:
        run = parse_config(["--config", "plan.json"], prog="jaxllm train", description="")
        job = prepare(run)
        check_room(folder / "room", job.shapes, copies=4)
        next(job.batches())
    except UserError as error:
        outcome, sentence = "clean", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, sentence = type(error).__name__, str(error)
    growth = (resident_bytes("VmHWM") - before) / 2**20
    return outcome, sentence, time.time() - started, growth


if __name__ == "__main__":
    run_experiment(main, FuzzConfigsConfig)
