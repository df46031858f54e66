"""Llama-2 7B and 70B compiled for pods of 256 chips, under data x fsdp x tensor.

    python -m experiments.benchmarks.pods                    # 10 steps: about 25 minutes on 2 cores

Llama 2's own batch, 1024 sequences of 4096 tokens; float32 weights and Adam, bfloat16 products, every
layer rematerialised. For each plan: memory, the forecast, the bytes that a device sends along each axis,
and how much of the network's time has no operation scheduled beside it. The least that fsdp can send is
the weights in bfloat16 three times for each part of a batch: gathered twice, and their gradients' sum.
XLA for TPUs gathers and scatters within two dimensions of a slice, and over three sums whole arrays, which
is twice that: there an axis of 64 devices, repeated 4 times, is weighed beside one of 256.

A sequence axis is not one more: between a layer's blocks the tensor axis splits the tokens of each sequence.

A pipeline axis is weighed without being built: of S stages and M parts of a batch it idles
(S - 1) / (M + S - 1) of the time, which has to be less than the time it could save, the exposed one.

Compiled for these machines, not run on them.
"""

import dataclasses
import math
import time
from dataclasses import dataclass

from tqdm import tqdm

from jaxllm import targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.parallel import MeshConfig
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.targets.forecast_cache import cached_forecast
from jaxllm.text import TrainConfig

_ISSUE = "issue: many hosts"
_STAGES = 4  # of the pipeline that is weighed: the fewest that would replace the tensor axis below


@dataclass(frozen=True)
class Plan:
    """One way to train a model on a machine."""

    model: str
    machine: str
    data: int
    fsdp: int
    tensor: int
    accumulate: int

    @property
    def mesh(self) -> str:
        """Its axes, as tables write them."""
        return f"{self.data}x{self.fsdp}x{self.tensor}"

    def __str__(self) -> str:
        return f"{self.model}/{self.machine}/{self.mesh}"


_PODS = (
    Plan("llama-2-7b", "v5e-256", 1, 256, 1, 1),
    Plan("llama-2-7b", "v5e-256", 4, 64, 1, 1),
    Plan("llama-2-7b", "v5e-256", 1, 64, 4, 1),
    Plan("llama-2-7b", "v5p-512", 1, 256, 1, 1),
    Plan("llama-2-7b", "v5p-512", 4, 64, 1, 1),
    Plan("llama-2-70b", "v5e-256", 1, 128, 2, 8),
    Plan("llama-2-70b", "v5e-256", 1, 64, 4, 8),
    Plan("llama-2-70b", "v5p-512", 1, 256, 1, 1),
    Plan("llama-2-70b", "v5p-512", 4, 64, 1, 1),
    Plan("llama-2-70b", "v5p-512", 1, 64, 4, 1),
)


@dataclass(frozen=True)
class PodsConfig(Config):
    """Which steps to compile."""

    plans: tuple[Plan, ...] = _PODS
    batch_size: Count = 1024  # sequences
    seq_len: Count = 4096
    out: UserPath = "runs/pods"


PRESETS = {
    "debug": lambda: PodsConfig((Plan("llama-nano", "v5e-8", 1, 8, 1, 1),
                                 Plan("llama-nano", "v5e-8", 1, 4, 2, 1)),
                                batch_size=16, seq_len=128, out="runs/pods-debug"),
    "small": PodsConfig,
}  # fmt: skip


def main(config: PodsConfig, preset: str = "small") -> Report:
    """Compile every plan; write the report into `config.out`."""
    started = time.time()
    for plan in config.plans:
        if not targets.is_available(plan.machine):
            need = "pip install 'jaxllm[tpu-targets]'"
            raise UserError(f"the compiler for {plan.machine} is not installed; {need}")
    forecasts = {
        plan: cached_forecast(run_of(config, plan), targets.get_target(plan.machine))
        for plan in tqdm(config.plans, desc="compiling", unit="step")
    }
    metrics, claims = {}, []
    for plan, forecast in forecasts.items():
        metrics |= _figures(config, plan, forecast)
    for model, machine in dict.fromkeys((plan.model, plan.machine) for plan in config.plans):
        here = {p: f for p, f in forecasts.items() if (p.model, p.machine) == (model, machine)}
        claims += _claims(config, f"{model} on {machine}", here)
    report = Report(
        experiment="benchmarks/pods", preset=preset, config=dataclasses.asdict(config), seeds=[],
        metrics=metrics, claims=claims, seconds=time.time() - started,
        sections={"Plans": _table(config, forecasts)},
    )  # fmt: skip
    report.write(config.out)
    print(report.to_markdown(config.out))
    return report


def run_of(config: PodsConfig, plan: Plan) -> TrainConfig:
    """Return the run of a plan."""
    return TrainConfig(
        model=get_preset(plan.model, remat="full"), batch_size=config.batch_size, seq_len=config.seq_len,
        accumulate=plan.accumulate, precision="mixed_o1", mesh=MeshConfig(plan.data, plan.fsdp, plan.tensor),
        isolate_documents=False,
    )  # fmt: skip


def least_fsdp_bytes(plan: Plan) -> float:
    """Return what a device must send along fsdp: the weights gathered twice, their gradients summed."""
    weights = 2 * get_preset(plan.model).num_params / plan.tensor
    return 3 * plan.accumulate * weights * (plan.fsdp - 1) / plan.fsdp


def pipeline_idle_share(config: PodsConfig, plan: Plan) -> float:
    """Return the part of a step that a pipeline idles, in place of the tensor axis if there is one."""
    devices = targets.get_target(plan.machine).num_devices
    parts = max(1, config.batch_size * _STAGES // devices)  # of one row each
    return (_STAGES - 1) / (parts + _STAGES - 1)


def _fsdp_bytes(forecast) -> float:
    return sum(size for axes, size in forecast.collective_bytes.items() if "fsdp" in axes.split("+"))


def _figures(config, plan, forecast) -> dict[str, float]:
    figures = {f"peak_gib/{plan}": forecast.peak_bytes / 2**30}
    if not math.isfinite(forecast.seconds):
        return figures
    figures |= {
        f"seconds/{plan}": forecast.seconds,
        f"mfu/{plan}": forecast.mfu,
        f"tokens_per_second/{plan}": config.batch_size * config.seq_len / forecast.seconds,
        f"network_seconds/{plan}": forecast.network_seconds,
        f"exposed_network_seconds/{plan}": forecast.exposed_network_seconds,
        f"fsdp_bytes_over_least/{plan}": _fsdp_bytes(forecast) / least_fsdp_bytes(plan),
    }
    return figures | {f"sent_gib/{plan}/{a}": b / 2**30 for a, b in forecast.collective_bytes.items()}


def _claims(config, name: str, forecasts) -> list[Claim]:
    """Return what is claimed of a model on a machine: of its fastest plan, if one fits."""
    fitting = {p: f for p, f in forecasts.items() if f.fits}
    claims = [Claim(f"{name}: a plan fits", _ISSUE, float(len(fitting)), bool(fitting))]
    if not fitting:
        return claims
    plan, best = min(fitting.items(), key=lambda item: item[1].seconds)
    exposed = best.exposed_network_seconds / best.seconds
    over = _fsdp_bytes(best) / least_fsdp_bytes(plan)
    idle = pipeline_idle_share(config, plan)
    where = f"{name}, {plan.mesh}"
    return claims + [
        Claim(f"{where}: at most 10 % of a step is the network's alone", _ISSUE, exposed, exposed <= 0.1),
        Claim(f"{where}: it sends at most 1.5 x the least along fsdp", _ISSUE, over, over <= 1.5),
        Claim(f"{where}: a pipeline of {_STAGES} stages would idle for longer", _ISSUE, idle, idle > exposed),
    ]  # fmt: skip


def _table(config, forecasts) -> str:
    rows = []
    for plan, f in forecasts.items():
        rows.append((
            plan.model, plan.machine, plan.mesh, plan.accumulate,
            f"{f.peak_bytes / 2**30:.1f} of {f.target.hbm_bytes / 2**30:.1f}", "yes" if f.fits else "no",
            *_times(config, f), f"{f.compile_wall_seconds:.0f} s",
        ))  # fmt: skip
    return markdown_table(
        ("model", "machine", "data x fsdp x tensor", "parts", "GiB", "fits", "step", "MFU", "tokens/s",
         "sent, GiB", "network", "exposed", "compiled in"), rows,
    )  # fmt: skip


def _times(config, forecast) -> tuple[str, ...]:
    if not math.isfinite(forecast.seconds):
        return ("",) * 6
    sent = ", ".join(f"{axes} {size / 2**30:.1f}" for axes, size in forecast.collective_bytes.items()
                     if size > 2**20)  # fmt: skip
    return (
        f"{forecast.seconds:.2f} s", f"{forecast.mfu:.0%}",
        f"{config.batch_size * config.seq_len / forecast.seconds:,.0f}", sent,
        f"{forecast.network_seconds:.2f} s", f"{forecast.exposed_network_seconds:.2f} s",
    )  # fmt: skip


if __name__ == "__main__":
    run_experiment(main, PodsConfig, PRESETS)
