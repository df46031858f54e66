"""Training steps of GPT-2 small and XL compiled for machines that are not here, beside a rival's.

    python -m experiments.benchmarks.targets                    # GPT-2 small: some minutes on 2 cores
    python -m experiments.benchmarks.targets --preset paper     # and XL
    python -m experiments.benchmarks.targets --maxtext FOLDER --maxtext-python PYTHON

T = 1024, every layer rematerialised, ours and theirs; and steps of decoding. The rivals: `plain`, a
training step in the common way (reference_step.py), compiled by the same compiler in the same run; and
MaxText's own step for the same shape, where a checkout of it and a Python that can run it are given (TPU
only: its command compiles for the GPUs of its process). `ratio/CASE/RIVAL` is the rival's peak memory over
ours, both by the compiler's account. Compiled for these machines, not run on them.
"""

import dataclasses
import math
import time
from dataclasses import dataclass

import jax
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from experiments.benchmarks.maxtext_step import maxtext_peak
from experiments.benchmarks.reference_step import reference_step
from jaxllm import targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.parallel import MeshConfig
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.targets.forecast_cache import cached_forecast
from jaxllm.text import PRECISIONS, TrainConfig

# model, machine, sequences a step: XL's state alone is 17 GiB, more than one v5e has.
_SMALL = (("gpt2", "v5e-1", 8), ("gpt2", "v6e-1", 8), ("gpt2", "h100", 8))
_XL = (("gpt2-xl", "v5e-8", 8), ("gpt2-xl", "v6e-1", 4), ("gpt2-xl", "h100", 4))
_DECODING = (("gpt2", "v5e-1", 8), ("llama-2-7b", "v5e-8", 8), ("llama-2-7b", "h100", 8))
_POLICIES = (
    *((precision, "adamw") for precision in PRECISIONS),
    ("mixed_o1", "lion"),
    ("bfloat16", "adamw_bf16_sr"),
)
# float32 parameters and moments, bfloat16 products: what the rivals run
_RIVALS_POLICY = ("mixed_o1", "adamw")
_MAXTEXT_ATTENTIONS = ("dot_product", "flash")


@dataclass(frozen=True)
class TargetsConfig(Config):
    """Which steps to compile."""

    cases: tuple[tuple[str, str, int], ...] = _SMALL  # (model, machine, sequences a step)
    decoding: tuple[tuple[str, str, int], ...] = _DECODING  # (model, machine, rows)
    seq_len: Count = 1024  # also the slots of a decoding step's cache
    policies: tuple[tuple[str, str], ...] = _POLICIES  # (precision, optimizer)
    maxtext: UserPath = ""  # a checkout of MaxText; empty: not compared
    maxtext_python: UserPath = "python3.12"  # an interpreter with its packages
    out: UserPath = "runs/targets"


PRESETS = {
    "debug": lambda: TargetsConfig(
        cases=(("gpt2-nano", "v5e-1", 8),), decoding=(("gpt2-nano", "v5e-1", 8),), seq_len=128,
        policies=(_RIVALS_POLICY,), out="runs/targets-debug",
    ),
    "small": TargetsConfig,
    "paper": lambda: TargetsConfig(_SMALL + _XL, out="runs/targets-paper"),
}


def main(config: TargetsConfig, preset: str = "small") -> Report:
    """Compile every case and its rivals; write the report into `config.out`."""
    started = time.time()
    missing = [m for _, m, _ in config.cases + config.decoding if not targets.is_available(m)]
    if missing:
        raise UserError(f"the compiler for {missing[0]} is not installed; pip install 'jaxllm[tpu-targets]' "
                        "for a TPU, 'jaxllm[cuda-targets]' for a GPU")  # fmt: skip
    metrics, claims, rows = {}, [], []
    jobs = [(case, policy) for case in config.cases for policy in config.policies]
    for case, policy in tqdm(jobs, desc="compiling", unit="step"):
        name = "/".join((*case[:2], *policy))
        ours = cached_forecast(our_run(config, case, *policy), targets.get_target(case[1]))
        metrics |= _figures(name, ours)
        rows.append((name, case[2], ours, "jaxllm"))
        if policy != _RIVALS_POLICY:
            continue
        theirs = plain_forecast(config, case)
        metrics |= _figures(f"{name}/plain", theirs)
        rows.append((name, case[2], theirs, "plain"))
        peaks = {"plain": theirs.peak_bytes} | _maxtext_peaks(config, case)
        for rival, peak in peaks.items():
            metrics[f"peak_gib/{name}/{rival}"] = peak / 2**30
            metrics[f"ratio/{name}/{rival}"] = peak / ours.peak_bytes
            part = ours.peak_bytes / peak
            claim = f"{name}: peak memory <= 0.9 x {rival}'s"
            claims.append(Claim(claim, "issue: targets", part, part <= 0.9))
        part = ours.seconds / theirs.seconds
        claims.append(Claim(f"{name}: estimated time <= plain's", "issue: targets", part, part <= 1))
    for model, machine, batch_size in tqdm(config.decoding, desc="compiling", unit="decoding step"):
        name = f"{model}/{machine}/decoding"
        one = get_preset(model, dtype="bfloat16")
        forecast = targets.compile_decode_step(one, batch_size, config.seq_len, machine)
        metrics |= _figures(name, forecast)
        rows.append((name, batch_size, forecast, "jaxllm"))
    report = Report(
        experiment="benchmarks/targets", preset=preset, config=vars(config), seeds=[], metrics=metrics,
        claims=claims, seconds=time.time() - started, sections={"Steps": _table(rows)},
    )  # fmt: skip
    report.write(config.out)
    print(report.to_markdown(config.out))
    return report


def our_run(config: TargetsConfig, case, precision: str, optimizer: str) -> TrainConfig:
    """Return the run of a case: all devices hold a part of the parameters, every layer rematerialised."""
    model, machine, batch_size = case
    devices = targets.get_target(machine).num_devices
    base = TrainConfig()
    return dataclasses.replace(
        base, model=get_preset(model, remat="full"), batch_size=batch_size, seq_len=config.seq_len,
        precision=precision, optim=dataclasses.replace(base.optim, name=optimizer),
        mesh=MeshConfig(1, devices, 1), isolate_documents=False,
    )  # fmt: skip


def plain_forecast(config: TargetsConfig, case):
    """Compile the plain step for the same machine; on several devices its parameters are sharded too."""
    model, machine, batch_size = case
    target = targets.get_target(machine)
    sizes = get_preset(model)
    mesh = targets.mesh(MeshConfig(1, target.num_devices, 1), target)
    step, (state, batch) = reference_step(sizes, batch_size, config.seq_len)
    state, batch = _spread(state, mesh), _spread(batch, mesh, first=True)
    flops = sizes.flops_per_token(config.seq_len) * batch_size * config.seq_len / target.num_devices
    return targets.compile(step, (state, batch), target, model_flops=flops)


def _spread(shapes, mesh, first: bool = False):
    """Split each array over all devices along its first axis, or along its largest that divides."""
    ways = mesh.size

    def place(x):
        axes = range(1) if first else sorted(range(x.ndim), key=lambda i: -x.shape[i])
        axis = next((i for i in axes if x.shape[i] % ways == 0), None)
        spec = [("fsdp" if i == axis and ways > 1 else None) for i in range(x.ndim)]
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(place, shapes)


def _maxtext_peaks(config: TargetsConfig, case) -> dict[str, int]:
    target = targets.get_target(case[1])
    if not config.maxtext or target.platform != "tpu":
        return {}
    return {
        f"maxtext_{attention}": maxtext_peak(
            config.maxtext, config.maxtext_python, get_preset(case[0]), target, case[2], config.seq_len,
            remat="full", attention=attention,
        )  # fmt: skip
        for attention in _MAXTEXT_ATTENTIONS
    }


def _figures(name: str, forecast) -> dict[str, float]:
    figures = {f"peak_gib/{name}": forecast.peak_bytes / 2**30}
    if math.isfinite(forecast.seconds):
        figures |= {f"seconds/{name}": forecast.seconds, f"mfu/{name}": forecast.mfu}
    return figures


def _table(rows) -> str:
    cells = []
    for name, batch, f, who in rows:
        speed = ("", "")
        if math.isfinite(f.seconds):
            speed = (f"{1000 * f.seconds:.1f} ms", f"{100 * f.mfu:.0f} %")
        fits = "yes" if f.fits else "no"
        cells.append((name, batch, who, f"{f.peak_bytes / 2**30:.2f} GiB", fits, *speed, f.bound))
    return markdown_table(("step", "sequences", "by", "peak", "fits", "estimate", "MFU", "bound"), cells)


if __name__ == "__main__":
    run_experiment(main, TargetsConfig, PRESETS)
