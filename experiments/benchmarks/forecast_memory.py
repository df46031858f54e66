"""Hold the forecast's peak memory against what the same training step really takes on the CPU.

    python -m experiments.benchmarks.forecast_memory             # about 3 minutes on 2 cores

The CPU backend keeps no memory statistics, so the kernel is asked: in a process of its own each step is
compiled and run once; then the high-water mark of resident memory is reset, the step runs again, and the
rise above what was resident before (state and batch, which are already there) is what the step took. The
forecast for it is the compiler's temporaries and the outputs that are not donated. Pages that a program
reserves and never touches are not resident, so the measured figure may be below the forecast's.

RESULT (1 December 2026): six steps take 1.003 to 1.049 of what was forecast; the largest error is that of
layers that are rematerialised (160 MiB forecast).
"""

import ctypes
import json
import subprocess
import sys
import time
from dataclasses import dataclass

import jax
from tqdm import tqdm

from experiments.benchmarks.resident_memory import resident_bytes, restart_peak
from jaxllm import models, targets
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, UserPath
from jaxllm.report import Claim, Report, markdown_table
from jaxllm.text import TrainConfig, prepare_shapes

CASES = {
    "gpt2": dict(preset="gpt2-micro"),
    "gpt2, rematerialised": dict(preset="gpt2-micro", remat="full"),
    "gpt2, 8 parts": dict(preset="gpt2-micro", accumulate=8),
    "gpt-neo": dict(preset="gpt-neo-nano", num_layers=4, embed_dim=128, num_heads=4, context_length=256),
    "llama": dict(preset="llama-micro"),
    "llama, mixed_o1": dict(preset="llama-micro", precision="mixed_o1"),
}


@dataclass(frozen=True)
class ForecastMemoryConfig(Config):
    """How large the steps are."""

    batch_size: Count = 32
    seq_len: Count = 256
    out: UserPath = "runs/forecast_memory"


def main(config: ForecastMemoryConfig, preset: str = "small") -> Report:
    """Forecast and measure every case; write the report into `config.out`."""
    started = time.time()
    metrics, rows = {}, []
    for name in tqdm(CASES, desc="steps", unit="step"):
        command = [sys.executable, "-m", "experiments.benchmarks.forecast_memory", "--measure", name,
                   str(config.batch_size), str(config.seq_len)]  # fmt: skip
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(ran.stdout.splitlines()[-1])
        ratio = found["measured"] / found["forecast"]
        metrics |= {f"bytes/{name}/{key}": value for key, value in found.items()}
        metrics[f"ratio/{name}"] = ratio
        mib = [found[key] / 2**20 for key in ("forecast", "measured")]
        rows.append((name, f"{mib[0]:.1f}", f"{mib[1]:.1f}", f"{ratio:.3f}"))
    table = markdown_table(("step", "forecast MiB", "measured MiB", "measured / forecast"), rows)
    worst = max((abs(metrics[f"ratio/{name}"] - 1) for name in CASES), default=0.0)
    report = Report(
        experiment="benchmarks/forecast_memory", preset=preset, config=vars(config), seeds=[0],
        metrics=metrics | {"worst_error": worst},
        claims=[Claim("the forecast's peak is within 10 % of the step's real peak on the CPU",
                      "issue: compile lab", measured=worst, holds=worst <= 0.1)],
        seconds=time.time() - started, sections={"Peak above the state and the batch": table},
    )  # fmt: skip
    report.write(config.out)
    print(table)
    print(f"worst error {worst:.1%} ({report.seconds:.0f} s; see {config.out}/report.md)")
    return report


def measure(name: str, batch_size: int, seq_len: int) -> dict[str, int]:
    """Forecast one case, run it, and return both figures in bytes, above state and batch."""
    options = dict(CASES[name])
    run_options = {key: options.pop(key) for key in ("accumulate", "precision") if key in options}
    model = models.get_preset(options.pop("preset"), **options)
    config = TrainConfig(model=model, batch_size=batch_size, seq_len=seq_len, **run_options)
    forecast = targets.compile_train_step(config, "cpu")
    job = prepare_shapes(config, devices=jax.devices()[:1])
    step = job.train_step.lower(job.shapes, job.batch_shapes).compile()
    state = job.init(jax.random.key(0))
    batch = {k: jax.numpy.zeros(s.shape, s.dtype) for k, s in job.batch_shapes.items()}
    state, _ = jax.block_until_ready(step(state, batch))
    measured = []
    for _ in range(3):
        time.sleep(0.5)  # the buffers of the run before are freed by another thread
        ctypes.CDLL(None).malloc_trim(0)  # and what the allocator keeps of them goes back to the kernel
        before = restart_peak()
        state, _ = jax.block_until_ready(step(state, batch))
        measured.append(resident_bytes("VmHWM") - before)
    passing = forecast.compiler_temporaries + forecast.breakdown.get("outputs", 0)
    return {"forecast": passing, "measured": max(measured), "forecast_peak": forecast.peak_bytes}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        run_experiment(main, ForecastMemoryConfig)
