"""A training step of each stage of evolving subnetwork training: time, memory, FLOPs.

    python -m experiments.benchmarks.subnetworks                   # some minutes, most of them compiling
    python -m experiments.benchmarks.subnetworks --preset debug    # a minute
    python -m experiments.benchmarks.subnetworks --rounds 0        # compiled figures only

The stages are "whole", "wide" (half of the heads and neurons) and "small" (half of the layers too). On this
CPU whole training steps, drawing, gathering and AdamW included, take turns in processes of their own; AdamW
alone, which no stage makes cheaper, stands beside them. For each of `targets` (extras: tpu-targets,
cuda-targets) a larger model's steps are compiled: peak memory by the compiler's account, and the estimate of
their time. Nothing ran on those. FLOPs are `ModelConfig.flops_per_token`, head included.
"""

import dataclasses
import functools
import math
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.benchmarks.turns import take_turns
from jaxllm import host_memory, models, targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, CountOrZero, UserPath
from jaxllm.models import get_preset
from jaxllm.optim import make_optimizer
from jaxllm.report import Claim, Report
from jaxllm.subnetwork import Rates, Schedule, Stage, shrink
from jaxllm.text import TrainConfig, prepare_shapes

STAGES = {"whole": Rates(), "wide": Rates(1.0, 0.5, 0.5), "small": Rates(0.5, 0.5, 0.5)}
PART = 0.9  # of the FLOPs saved, that the time saved is to reach
PEAK = 0.5  # of the whole step's memory


@dataclass(frozen=True)
class SubnetworksConfig(Config):
    """The step that runs here, and the one that is compiled."""

    num_layers: Count = 6  # of the model whose steps run here
    embed_dim: Count = 512
    batch_size: Count = 16
    seq_len: Count = 256
    rounds: CountOrZero = 5  # turns of each stage; 0: time nothing
    targets: tuple[str, ...] = ("v5e-1", "h100")
    target_model: str = "gpt2"  # the preset that is compiled for them, in bfloat16 on float32 weights
    target_batch_size: Count = 16
    target_seq_len: Count = 1024
    out: UserPath = "runs/subnetworks"


PRESETS = {
    "debug": lambda: SubnetworksConfig(
        num_layers=2,
        embed_dim=64,
        batch_size=8,
        seq_len=64,
        rounds=2,
        targets=(),
        out="runs/subnetworks-debug",
    ),
    "small": SubnetworksConfig,
}


def main(config: SubnetworksConfig, preset: str = "small") -> Report:
    """Time and compile every stage; write the report into `config.out`."""
    started = time.time()
    here = run_here(config)
    metrics, claims = {"parameters": here.model.num_params}, []
    saved = _flops_saved(here, "cpu", metrics)
    if config.rounds:
        _time(here, config.rounds, saved, metrics, claims)
    _compile(here, "cpu", saved, metrics, claims)
    there = run_there(config)
    for target in config.targets:
        if targets.is_available(target):
            _compile(there, target, _flops_saved(there, target, metrics), metrics, claims)
        else:
            print(f"{target}: its compiler is not installed")
    report = Report(
        experiment="benchmarks/subnetworks", preset=preset, config=dataclasses.asdict(config), seeds=[0],
        metrics=metrics, claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    report.write(config.out)
    print(report.to_text())
    return report


def run_here(config: SubnetworksConfig) -> TrainConfig:
    """Return the run whose steps are timed."""
    sizes = dict(num_layers=config.num_layers, embed_dim=config.embed_dim, context_length=config.seq_len)
    model = get_preset("gpt2-micro", vocab_size=1024, num_heads=max(4, config.embed_dim // 64), **sizes)
    return TrainConfig(model=model, seq_len=config.seq_len, batch_size=config.batch_size)


def run_there(config: SubnetworksConfig) -> TrainConfig:
    """Return the run whose steps are compiled for the targets."""
    return TrainConfig(model=get_preset(config.target_model), seq_len=config.target_seq_len,
                       batch_size=config.target_batch_size, precision="mixed_o1")  # fmt: skip


def job_of(run: TrainConfig, stage: str, devices=None):
    """Return the job of a run that is all one stage."""
    return prepare_shapes(run, subnetworks=Schedule((Stage(1.0, STAGES[stage]),)), devices=devices)


def steps_here(run: TrainConfig, stage: str):
    """Return a function that takes a training step and waits for it."""
    host_memory.keep_freed_memory()
    job = job_of(run, stage)
    tokens = np.random.default_rng(0).integers(
        0, run.model.vocab_size, (run.batch_size, run.seq_len + 1), np.int32
    )
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": 0 * tokens[:, 1:],
             "mask": np.ones(tokens[:, 1:].shape, np.float32)}  # fmt: skip
    state, batch = job.init(jax.random.key(0)), job.put(batch)

    def step():
        nonlocal state
        state, metrics = job.train_step(state, batch)
        return jax.block_until_ready(metrics["loss"]), jax.block_until_ready(state)

    return step


def optimizer_here(run: TrainConfig):
    """Return a function that updates every parameter once, and waits."""
    host_memory.keep_freed_memory()
    optimizer = make_optimizer(run.optim, run.steps, models.axes(run.model))
    params = jax.jit(functools.partial(models.init, run.model))(jax.random.key(0))
    state = jax.jit(optimizer.init)(params)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step():
        nonlocal params, state
        params, state = jax.block_until_ready(update(params, state, grads))

    return step


def _flops_saved(run: TrainConfig, case: str, metrics) -> dict[str, float]:
    """Return the part of the whole step's FLOPs that each other stage saves."""
    whole = run.model.flops_per_token(run.seq_len)
    saved = {}
    for stage in ("wide", "small"):
        saved[stage] = 1 - shrink(run.model, STAGES[stage]).flops_per_token(run.seq_len) / whole
        metrics[f"flops_saved/{case}/{stage}"] = saved[stage]
    return saved


def _time(run: TrainConfig, rounds: int, saved, metrics, claims) -> None:
    contenders = {stage: functools.partial(steps_here, run, stage) for stage in STAGES}
    contenders["adamw"] = functools.partial(optimizer_here, run)
    seconds, _ = take_turns(contenders, rounds, title="on this CPU")
    for name, values in seconds.items():
        metrics[f"step_ms/{name}"] = 1e3 * statistics.median(values)
        metrics[f"step_ms/{name}/min"], metrics[f"step_ms/{name}/max"] = 1e3 * min(values), 1e3 * max(values)
    fixed = statistics.median(seconds["adamw"])
    for stage, part in saved.items():
        turns = [1 - s / w for s, w in zip(seconds[stage], seconds["whole"], strict=True)]
        metrics[f"ratio/{stage}/whole"] = 1 / (1 - statistics.median(turns))
        metrics[f"seconds_saved/{stage}"] = statistics.median(turns)
        metrics[f"seconds_saved/{stage}/without_adamw"] = statistics.median(
            1 - (s - fixed) / (w - fixed) for s, w in zip(seconds[stage], seconds["whole"], strict=True)
        )
        _claim_time(f"on this CPU, {stage}", statistics.median(turns) / part, claims)


def _compile(run: TrainConfig, target: str, saved, metrics, claims) -> None:
    forecasts = {}
    for stage in tqdm(STAGES, desc=f"compiling for {target}", unit="stage"):
        job = job_of(run, stage, targets.devices(targets.get_target(target))[:1])
        forecast = targets.compile(job.train_step, (job.shapes, job.batch_shapes), target)
        forecasts[stage] = forecast
        metrics[f"temporary_mib/{target}/{stage}"] = forecast.compiler_temporaries / 2**20
        metrics[f"peak_mib/{target}/{stage}"] = forecast.peak_bytes / 2**20
        if target != "cpu" and math.isfinite(forecast.seconds):
            metrics[f"estimated_ms/{target}/{stage}"] = 1e3 * forecast.seconds
    whole = forecasts["whole"]
    part = forecasts["small"].peak_bytes / whole.peak_bytes
    metrics[f"ratio/memory/{target}/small/whole"] = 1 / part
    claims.append(Claim(f"compiled for {target}, small: peak memory at most {PEAK} x the whole step's",
                        "issue: subnetworks", measured=part, holds=part <= PEAK))  # fmt: skip
    for stage, flops in saved.items():
        estimate = 1 - forecasts[stage].seconds / whole.seconds
        if target != "cpu" and math.isfinite(estimate):
            _claim_time(f"compiled for {target}, {stage}, estimated", estimate / flops, claims)


def _claim_time(case: str, part: float, claims) -> None:
    claims.append(Claim(f"{case}: time saved over FLOPs saved at least {PART}", "issue: subnetworks",
                        measured=part, holds=part >= PART))  # fmt: skip


if __name__ == "__main__":
    run_experiment(main, SubnetworksConfig, PRESETS)
