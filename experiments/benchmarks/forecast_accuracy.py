"""Our forecast of a training step's time against what others measured on the machine.

    python -m experiments.benchmarks.forecast_accuracy                       # estimates only, seconds
    python -m experiments.benchmarks.forecast_accuracy --compile-up-to 8     # and compiled: minutes
    python -m experiments.benchmarks.forecast_accuracy --write               # renew calibrated.json

Each published run (published_steps.py: source and quoted figure) is described as a run of this library
on the same machine, mesh, batch and precision. The roofline time of that, divided by the measured
time, is how much of the roofline's speed the run reached. Of each chip's runs every second one, in the
order of the table, sets the chip's one efficiency number (the geometric mean); the others test it.
These are other people's programs: what is tested is whether the forecast's arithmetic, with one number
a chip, tells how long such a step takes.

RESULT (1 December 2026, estimates only): the published runs that set no chip's number are forecast with a
mean absolute error of 8.1 %, at worst 23 % (llm.c's GPT-2 on an H100); on TPUs at worst 9 %.
"""

import dataclasses
import json
import math
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tqdm import tqdm

from experiments.benchmarks.published_steps import PUBLISHED, PublishedStep
from jaxllm.atomic import write_file
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, CountOrZero, UserPath
from jaxllm.parallel import MeshConfig
from jaxllm.report import Claim, Report, decide, markdown_table, t_interval
from jaxllm.targets.analytic import estimate
from jaxllm.targets.catalog import get_target
from jaxllm.targets.forecast_cache import cached_forecast
from jaxllm.text import TrainConfig

# Chips that nobody publishes such runs of take the mean of their maker's others.
_RELATIVES = {"h200": ("h100",), "b200": ("h100",), "l4": ("a100-80gb", "a100-40gb"),
              "t4": ("a100-80gb", "a100-40gb")}  # fmt: skip


@dataclass(frozen=True)
class AccuracyConfig(Config):
    """What to compile besides estimating."""

    compile_up_to: CountOrZero = 0  # devices: published runs on at most so many are also compiled
    write: bool = False  # write the efficiencies into jaxllm/targets/calibrated.json
    out: UserPath = "runs/forecast_accuracy"


def main(config: AccuracyConfig, preset: str = "small") -> Report:
    """Compare, calibrate, test; write the report into `config.out`."""
    started = time.time()
    reached = [roofline_seconds(row) / measured_seconds(row) for row in PUBLISHED]
    calibration, held_out = split(PUBLISHED)
    table = efficiencies(PUBLISHED, reached, calibration)
    errors = {i: ours(i, reached, table) / measured_seconds(PUBLISHED[i]) - 1 for i in range(len(PUBLISHED))}
    compiled = _compiled(config.compile_up_to, table)

    metrics = {f"efficiency/{chip}": entry["efficiency"] for chip, entry in table.items()}
    metrics |= {f"error/{_case(PUBLISHED[i])}": errors[i] for i in held_out}
    metrics |= {f"compiled_error/{_case(PUBLISHED[i])}": error for i, error in compiled.items()}
    tested = [abs(errors[i]) for i in held_out]
    metrics["mean_absolute_error/held_out"] = statistics.mean(tested)
    metrics["mean_absolute_error/calibration"] = statistics.mean(abs(errors[i]) for i in calibration)
    metrics["worst_absolute_error/held_out"] = max(tested)
    if compiled:
        metrics["mean_absolute_error/compiled"] = statistics.mean(map(abs, compiled.values()))
    claims = [
        Claim("at least six published figures are compared", "issue: targets",
              measured=len(PUBLISHED), holds=len(PUBLISHED) >= 6),
        Claim("step times of held-out runs within 20 % on average", "own goal",
              measured=statistics.mean(tested), interval=t_interval(tested),
              holds=decide(t_interval(tested), at_most=0.2)),
    ]  # fmt: skip
    report = Report(
        experiment="benchmarks/forecast_accuracy", preset=preset, config=vars(config), seeds=[],
        metrics=metrics, claims=claims, seconds=time.time() - started,
        sections={"Published against forecast": _table(errors, calibration, compiled, reached)},
    )  # fmt: skip
    report.write(config.out)
    if config.write:
        path = Path(str(resources.files("jaxllm.targets") / "calibrated.json"))
        write_file(path, (json.dumps(table, indent=2) + "\n").encode())
    print(report.sections["Published against forecast"])
    mean, worst = 100 * statistics.mean(tested), 100 * max(tested)
    print(f"\nheld out: {mean:.1f} % mean absolute error, worst {worst:.0f} %")
    return report


def as_run(row: PublishedStep) -> TrainConfig:
    """Describe a published run as one of this library."""
    devices = get_target(row.target).num_devices
    model = dataclasses.replace(
        row.model, context_length=max(row.seq_len, row.model.context_length), remat=row.remat
    )
    return TrainConfig(
        model=model, seq_len=row.seq_len, batch_size=row.batch_size, accumulate=row.accumulate,
        precision=row.precision, isolate_documents=False,
        mesh=MeshConfig(devices // row.fsdp // row.tensor, row.fsdp, row.tensor),
    )  # fmt: skip


def measured_seconds(row: PublishedStep) -> float:
    """Return the seconds a step that the source measured, from whichever figure it gives."""
    devices = get_target(row.target).num_devices
    if row.seconds is not None:
        return row.seconds
    if row.tokens is not None:
        return row.batch_size * row.seq_len / devices / row.tokens
    model = row.model
    flops = model.flops_per_token(row.seq_len)
    if row.causal_flops:  # MaxText until May 2024: 6 a parameter, and half the square of scores
        square = 12 * model.num_heads * model.head_dim * row.seq_len * model.num_layers
        flops = 6 * model.num_params + square / 2
    return flops * row.batch_size * row.seq_len / devices / (row.tflops * 1e12)


def roofline_seconds(row: PublishedStep) -> float:
    """Return our estimate at the data sheet's figures, before any efficiency."""
    target = dataclasses.replace(get_target(row.target), efficiency=1.0)
    return estimate(as_run(row), target).seconds


def split(rows) -> tuple[list[int], list[int]]:
    """Return the indices of the runs that calibrate and of those that test: each chip's in turn."""
    seen = defaultdict(int)
    halves = [], []
    for index, row in enumerate(rows):
        chip = get_target(row.target).chip
        halves[seen[chip] % 2].append(index)
        seen[chip] += 1
    return halves


def efficiencies(rows, reached, calibration) -> dict[str, dict]:
    """Return each chip's entry of calibrated.json."""
    by_chip = defaultdict(list)
    for index in calibration:
        by_chip[get_target(rows[index].target).chip].append(index)
    table = {}
    for chip, indices in by_chip.items():
        table[chip] = {
            "efficiency": round(_geometric(reached[i] for i in indices), 3),
            "from": [f"{rows[i].name} on {rows[i].target}: {reached[i]:.3f}" for i in indices],
        }
    for chip, relatives in _RELATIVES.items():
        known = [table[name]["efficiency"] for name in relatives]
        source = f"not measured: as {' and '.join(relatives)}"
        table[chip] = {"efficiency": round(_geometric(known), 3), "from": [source]}
    return table


def ours(index: int, reached, table) -> float:
    """Return our forecast of a published run, in seconds."""
    row = PUBLISHED[index]
    efficiency = table[get_target(row.target).chip]["efficiency"]
    return reached[index] * measured_seconds(row) / efficiency


def _compiled(up_to: int, table) -> dict[int, float]:
    """Compile the runs on at most so many devices; return the error of each by its index."""
    chosen = [i for i, row in enumerate(PUBLISHED) if get_target(row.target).num_devices <= up_to]
    errors = {}
    for index in tqdm(chosen, desc="compiling", unit="step", disable=not chosen):
        row = PUBLISHED[index]
        target = get_target(row.target)
        target = dataclasses.replace(target, efficiency=table[target.chip]["efficiency"])
        forecast = cached_forecast(as_run(row), target)
        if math.isfinite(forecast.seconds):
            errors[index] = forecast.seconds / measured_seconds(row) - 1
    return errors


def _table(errors, calibration, compiled, reached) -> str:
    head = ("run", "machine", "theirs", "ours", "ratio", "compiled", "roofline reached", "part",
            "figure", "source")  # fmt: skip
    rows = []
    for i, row in enumerate(PUBLISHED):
        theirs = measured_seconds(row)
        forecast = f"{1 + compiled[i]:.2f}" if i in compiled else ""
        part = "calibration" if i in calibration else "test"
        note = f" ({row.note})" if row.note else ""
        mine, ratio, quote = theirs * (1 + errors[i]), 1 + errors[i], row.quote.replace("|", "/")
        rows.append((row.name, row.target, f"{theirs:.3f} s", f"{mine:.3f} s", f"{ratio:.2f}", forecast,
                     f"{reached[i]:.3f}", part, quote, row.source + note))  # fmt: skip
    return markdown_table(head, rows)


def _case(row: PublishedStep) -> str:
    return f"{row.name} on {row.target}".replace(" ", "_")


def _geometric(values) -> float:
    return math.exp(statistics.mean(math.log(v) for v in values))


if __name__ == "__main__":
    run_experiment(main, AccuracyConfig)
