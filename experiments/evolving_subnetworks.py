"""EST: train random subnetworks that grow to the whole model, beside plain training of as many FLOPs.

VERDICT: No: it saves 0.267 of the blocks' FLOPs, and ends 0.40 nats above plain training, 0.20 above plain
training of as many FLOPs.

RESULT (30 November 2026, small, 75 minutes of two cores, a process each; three seeds): no claim but the saved
FLOPs holds. EST ends 0.40 nats above plain training (0.35 to 0.45), 0.20 above plain training that ends at
EST's FLOPs, 0.46 above four layers for six; what it does to another corpus is undecided. The rate is part of
it: at 3e-3 EST was at 4.40 nats after 420 steps (3.52 at 1e-3), and plain training gains 0.12 there (seed 0).
A drop that all tokens of a step share is noise that no batch averages out: masks on the neurons, written
apart from this, were as far behind after 60 steps. Length is another part, by one seed at width 128: 600
steps leave 0.37 nats, 1,800 leave 0.24. Width (0.40 at twice the width) and evaluation (the training loss of
the last tenth is 0.32 and 0.24 behind) do not explain it.

    python -m experiments.evolving_subnetworks                     # small: 12 runs, 75 minutes on 2 cores
    python -m experiments.evolving_subnetworks --preset debug      # a minute
    python -m experiments.evolving_subnetworks --schedules est-gpt2-like layer-dropout random-paths
    python -m experiments.evolving_subnetworks --preset paper      # 8 H100

Width 128, each length with and without `--subnetwork est-gpt2-like`; its metrics.jsonl has the losses:

    jaxllm train --preset gpt2-micro --model.num-layers 6 --model.embed-dim 128 --model.num-heads 4
        --model.position rotary --tokenizer bpe:512 --seq-len 128 --batch-size 8 --steps 1800
        --optim.learning-rate 1e-3 --optim.warmup-steps 60 --eval-batches 10 --final-eval-batches 60

On your own model: `jaxllm train --subnetwork est-gpt2-like`; `jaxllm.subnetwork.subnetwork`, a view of
parameters.

Evolving subnetwork training (EST) is put beside plain training of as many steps; plain training that ends
where EST's FLOPs end, its learning rate rescaled to end there ("shorter", the fair control); and a model
with fewer layers, trained for as many FLOPs ("smaller"). All arms see the same batches and, but for the last,
start from the same weights. What is judged is the whole model, on held-out documents of its corpus and,
without training on it, on another corpus: `--zero-shot-data`, or Python's language reference, which comes
with Python's `pydoc`.

FLOPs are `ModelConfig.flops_per_token`, head included. Seconds are steps times the median time of a step of
each kind, timed in turn on this machine at the end, so that no arm has the luck of a quiet moment.

Li et al., Evolving Subnetwork Training for Large Language Models (arXiv 2406.06962); where the stages end is
not published (`jaxllm.subnetwork.evolving`).
"""

import contextlib
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.grid import check_seeds, column, mean_interval, publish, run_grid, spread
from jaxllm import data, parallel
from jaxllm.atomic import write_figure, write_file
from jaxllm.cli.experiment import run_experiment
from jaxllm.cli.train import open_presets
from jaxllm.config import Count, Seed, UserPath
from jaxllm.errors import UserError
from jaxllm.models import get_preset
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, Report, decide, markdown_table
from jaxllm.subnetwork import Savings, get_schedule, savings, shrink
from jaxllm.text import TrainConfig, cached_result, evaluate, plain_run, prepare, train
from jaxllm.train import to_dict
from jaxllm.train.writers import heldout_curve, read_metrics

_AROUND = 20  # steps on either side of a switch that are averaged
_WITHIN = 0.01  # nats that "no increase" allows
_PAPER, _OURS = "Li et al., abstract", "this experiment"
# schedule: the part of FLOPs that the paper saves
_PUBLISHED = {"est-gpt2-like": 0.267, "est-tinyllama-like": 0.25}


@dataclass(frozen=True)
class EvolvingSubnetworksConfig(TrainConfig):
    """The plain run, and what is compared with it."""

    schedules: tuple[str, ...] = ("est-gpt2-like",)  # of `subnetwork.SCHEDULES`; the first sets the FLOPs
    seeds: tuple[Seed, ...] = (0, 1, 2)
    zero_shot_data: UserPath = ""  # text to score without training on it; empty: Python's reference
    timing_rounds: Count = 9  # turns of each kind of step

    def __post_init__(self):
        super().__post_init__()
        if not self.schedules or self.subnetwork:
            raise UserError(f"schedules is {self.schedules} and subnetwork {self.subnetwork}; name what to "
                            "compare, at least one schedule, in schedules alone")  # fmt: skip
        for name in self.schedules:
            get_schedule(name, self.model.num_layers, self.steps)
        check_seeds(self.seeds)


def _debug() -> EvolvingSubnetworksConfig:
    return EvolvingSubnetworksConfig(
        model=get_preset("gpt2-nano", vocab_size=None), tokenizer="bytes", seq_len=32, batch_size=8, steps=15,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=3), eval_every=5, eval_batches=2, log_every=1,
        final_eval_batches=4, seeds=(0, 1), timing_rounds=2, out="runs/evolving-subnetworks-debug",
    )  # fmt: skip


def _small() -> EvolvingSubnetworksConfig:
    """Return a run of 6 layers of width 256, which take 97 % of the FLOPs: the vocabulary is small.

    The rate is one that EST bears: after 420 steps, seed 0, it was at 4.40 nats with 3e-3, 3.52 with 1e-3.
    """
    model = get_preset(
        "gpt2-micro", vocab_size=None, num_layers=6, embed_dim=256, num_heads=8, position="rotary"
    )
    return EvolvingSubnetworksConfig(
        model=model, tokenizer="bpe:512", seq_len=128, batch_size=8, steps=600,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=60), eval_every=60, eval_batches=10, log_every=1,
        final_eval_batches=60, out="runs/evolving-subnetworks",
    )  # fmt: skip


def _paper() -> EvolvingSubnetworksConfig:
    """GPT-2 base on OpenWebText; what is not published (all but model, data, AdamW) is nanoGPT's."""
    return EvolvingSubnetworksConfig(
        model=get_preset("gpt2"), data="tfds:openwebtext", tokenizer="gpt2", precision="mixed_o1",
        isolate_documents=False, seq_len=1024, batch_size=480, accumulate=5, steps=150_000,
        mesh=MeshConfig(8, 1, 1), optim=OptimConfig(warmup_steps=2000), eval_every=2000, eval_batches=200,
        log_every=1, final_eval_batches=2000, out="runs/evolving-subnetworks-paper",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": _small, "paper": _paper}


def main(config: EvolvingSubnetworksConfig, preset: str = "custom") -> Report:
    """Train all arms, time their steps; write the report into `config.out`."""
    if config.distributed:
        parallel.initialize()
    started, out = time.time(), Path(config.out)
    corpus = data.prepare(
        config.data, config.tokenizer, seq_len=config.seq_len, text_column=config.text_column
    )
    vocab_size = config.model.vocab_size or corpus.tokenizer.vocab_size
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab_size))
    arms = make_arms(config)
    zero_shot = config.zero_shot_data or str(write_reference(out / "python-reference.jsonl"))

    def measure(arm, seed):
        own = dict(seed=seed, out=str(out / arm / f"seed-{seed}"))
        return train_once(dataclasses.replace(arms[arm], **own), zero_shot)

    outcomes = run_grid(arms, config.seeds, measure)
    seconds = time_steps(arms, config.timing_rounds)
    saved = {name: savings_of(config, name) for name in config.schedules}
    metrics, claims, table = judge(config, arms, outcomes, seconds, saved)
    _plot(arms, outcomes, seconds, out / "loss.png")
    report = Report(
        experiment="evolving_subnetworks", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections={"Arms": table},
    )  # fmt: skip
    return publish(report, out)


def savings_of(config: TrainConfig, schedule: str) -> Savings:
    """Return what a schedule, by its name, saves over a run."""
    made = get_schedule(schedule, config.model.num_layers, config.steps)
    return savings(config.model, made, config.seq_len, config.steps)


def make_arms(config: EvolvingSubnetworksConfig) -> dict[str, TrainConfig]:
    """Return the run of each arm; all but the first use the FLOPs of the first schedule, or of their own."""
    plain = plain_run(config, progress=False, keep_last=1, keep_best=0)
    per_token = config.model.flops_per_token(config.seq_len)
    left = 1 - savings_of(config, config.schedules[0]).step

    def with_layers(count: int):
        return dataclasses.replace(config.model, num_layers=count)

    depths = range(len(config.model.windows), config.model.num_layers, len(config.model.windows))
    cost = {depth: with_layers(depth).flops_per_token(config.seq_len) / per_token for depth in depths}
    depth = min(cost, key=lambda depth: abs(cost[depth] - left))
    return {
        "plain": plain,
        **{name: dataclasses.replace(plain, subnetwork=name) for name in config.schedules},
        "shorter": dataclasses.replace(plain, steps=round(config.steps * left)),
        "smaller": dataclasses.replace(
            plain, model=with_layers(depth), steps=round(config.steps * left / cost[depth])
        ),
    }


def write_reference(path: Path) -> Path:
    """Write the topics of Python's own reference, English text, as documents; return where."""
    from pydoc_data.topics import topics

    write_file(path, "\n".join(json.dumps({"text": text}) for text in topics.values()).encode())
    return path


def train_once(run: TrainConfig, zero_shot: str) -> dict:
    """Train a run, unless it was, and score the whole model.

    Returns:
      loss, bits_per_byte: on held-out documents; zero_shot_bits_per_byte: on the other corpus.
      curve: [step, held-out loss] on the way; train: the loss of each step, of what it trained.
    """

    def measure():
        with contextlib.redirect_stdout(io.StringIO()):
            trained = train(run)
        other = data.prepare(zero_shot, trained.run.corpus.tokenizer, seq_len=run.seq_len)
        job = dataclasses.replace(trained.run, corpus=dataclasses.replace(other, valid=other.train))
        scores = evaluate(job, trained.params, max_batches=run.final_eval_batches)
        return dict(
            loss=trained.evaluation["loss"], bits_per_byte=trained.evaluation["bits_per_byte"],
            zero_shot_bits_per_byte=scores["bits_per_byte"],
            curve=heldout_curve(run.out),
            train=[row["loss"] for row in read_metrics(run.out) if "loss" in row],
        )  # fmt: skip

    return cached_result(
        Path(run.out, "outcome.json"), run, measure, zero_shot=data.fingerprint(zero_shot)
    )


def stages_of(run: TrainConfig) -> list[tuple[int, TrainConfig]]:
    """Return (the step where it ends, the run with the model that it computes) of each stage."""
    if run.subnetwork is None:
        return [(run.steps, run)]
    schedule = get_schedule(run.subnetwork, run.model.num_layers, run.steps)
    small = [dataclasses.replace(run, model=shrink(run.model, stage.rates)) for stage in schedule.stages]
    return list(zip(schedule.ends(run.steps), small, strict=True))


def so_far(run: TrainConfig, per_step: Sequence[float]) -> np.ndarray:
    """Return the sum of something after each step, from 0 steps on, given what a step of each stage costs."""
    ends = [end for end, _ in stages_of(run)]
    each = np.repeat(np.asarray(per_step, float), np.diff([0, *ends]))
    return np.concatenate([[0.0], np.cumsum(each)])


def flops(run: TrainConfig) -> list[float]:
    """Return the FLOPs of a step of each stage."""
    return [part.model.flops_per_token(run.seq_len) * run.tokens_per_step for _, part in stages_of(run)]


def time_steps(arms: dict[str, TrainConfig], rounds: int) -> dict[str, list[float]]:
    """Return the median seconds of a step of each stage of each arm, all timed in turn."""
    jobs = {arm: prepare(run) for arm, run in arms.items()}
    steps = {(arm, i): step for arm, job in jobs.items() for i, (_, step) in enumerate(job.steps)}
    states = {arm: job.init(jax.random.key(0)) for arm, job in jobs.items()}
    batches = {arm: job.put(next(job.batches())) for arm, job in jobs.items()}
    seconds = {case: [] for case in steps}
    for turn in tqdm(range(rounds + 1), desc="timing", unit="round"):
        for (arm, i), step in steps.items():
            begun = time.perf_counter()
            states[arm], _ = jax.block_until_ready(step(states[arm], batches[arm]))
            if turn:  # the first one compiles
                seconds[arm, i].append(time.perf_counter() - begun)
    return {
        arm: [statistics.median(seconds[arm, i]) for i in range(len(job.steps))]
        for arm, job in jobs.items()
    }


def judge(config, arms, outcomes, seconds, saved) -> tuple[dict[str, float], list[Claim], str]:
    """Compare the arms seed by seed; return (metrics, claims, the table of arms)."""
    losses, zero_shot = (column(outcomes, name) for name in ("loss", "zero_shot_bits_per_byte"))
    spent = {arm: so_far(run, flops(run))[-1] for arm, run in arms.items()}
    took = {arm: so_far(run, seconds[arm])[-1] for arm, run in arms.items()}
    metrics, rows = {}, []
    for arm, run in arms.items():
        metrics |= {
            f"heldout_loss/{arm}": float(losses[arm].mean()),
            f"zero_shot_bits_per_byte/{arm}": float(zero_shot[arm].mean()),
            f"heldout_bits_per_byte/{arm}": float(np.mean([o["bits_per_byte"] for o in outcomes[arm]])),
            f"petaflops/{arm}": spent[arm] / 1e15, f"seconds/{arm}": took[arm],
        }  # fmt: skip
        metrics |= {f"step_ms/{arm}/stage-{i}": 1e3 * each for i, each in enumerate(seconds[arm], 1)}
        rows.append([arm, run.model.num_layers, run.steps, f"{spent[arm] / 1e15:.3g}", f"{took[arm]:.0f}",
                     spread(losses[arm]), spread(zero_shot[arm])])  # fmt: skip
    claims = []
    for name, saving in saved.items():
        metrics |= {f"saved/blocks/{name}": saving.blocks, f"saved/step/{name}": saving.step,
                    f"saved/seconds/{name}": 1 - took[name] / took["plain"]}  # fmt: skip
        metrics |= switches(arms[name], outcomes[name])
        if name in _PUBLISHED:
            paper = _PUBLISHED[name]
            claims.append(Claim(f"{name}: FLOPs of the blocks saved, by construction", _PAPER, paper=paper,
                                measured=saving.blocks, holds=saving.blocks >= paper - 5e-4))  # fmt: skip
        mean, between = mean_interval(losses[name] - losses["plain"])
        claims.append(Claim(f"{name}: held-out loss above plain training's, no more than {_WITHIN}", _PAPER,
                            measured=mean, interval=between,
                            holds=decide(between, at_most=_WITHIN)))  # fmt: skip
        mean, between = mean_interval(zero_shot[name] - zero_shot["plain"])
        claims.append(Claim(f"{name}: zero-shot bits per byte above plain training's, below 0", _PAPER,
                            measured=mean, interval=between, holds=decide(between, below=0)))  # fmt: skip
    for control in ("shorter", "smaller"):
        name = config.schedules[0]
        mean, between = mean_interval(losses[name] - losses[control])
        claims.append(Claim(f"{name}: held-out loss above {control}'s of as many FLOPs, below 0", _OURS,
                            measured=mean, interval=between, holds=decide(between, below=0)))  # fmt: skip
    head = ["arm", "layers", "steps", "PFLOPs", "seconds", "held-out loss", "zero-shot bits per byte"]
    return metrics, claims, markdown_table(head, rows)


def switches(run: TrainConfig, outcomes: list[dict]) -> dict[str, float]:
    """Return by how much the training loss and the whole model's held-out loss change at each switch.

    Training: means of steps of the stages after and before. Held-out: the evaluations next to it.
    """
    changes = {}
    ends = [0, *(end for end, _ in stages_of(run))]
    trained = np.mean([outcome["train"] for outcome in outcomes], axis=0)
    curve = np.mean([outcome["curve"] for outcome in outcomes], axis=0)
    for number, (start, end, stop) in enumerate(zip(ends, ends[1:], ends[2:], strict=False), 1):
        around = min(_AROUND, end - start, stop - end)
        if not around:  # of a run so short that a stage has no step
            continue
        change = trained[end : end + around].mean() - trained[end - around : end].mean()
        changes[f"switch/{run.subnetwork}/{number}/train"] = float(change)
        before, after = curve[curve[:, 0] <= end], curve[curve[:, 0] > end]
        if len(before) and len(after):
            changes[f"switch/{run.subnetwork}/{number}/heldout"] = float(after[0, 1] - before[-1, 1])
    return changes


def _plot(arms, outcomes, seconds, path):
    """Draw the held-out loss against FLOPs and seconds, and the loss of the steps around the switches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for arm, run in arms.items():
        curve = np.mean([outcome["curve"] for outcome in outcomes[arm]], axis=0)
        at = curve[:, 0].astype(int)
        axes[0].plot(so_far(run, flops(run))[at] / 1e15, curve[:, 1], marker=".", label=arm)
        axes[1].plot(so_far(run, seconds[arm])[at], curve[:, 1], marker=".", label=arm)
        trained = np.mean([outcome["train"] for outcome in outcomes[arm]], axis=0)
        smooth = (
            np.convolve(trained, np.ones(_AROUND) / _AROUND, mode="valid")
            if len(trained) > _AROUND
            else trained
        )
        axes[2].plot(
            np.arange(len(smooth)) + len(trained) - len(smooth) + 1, smooth, linewidth=0.8, label=arm
        )
        for end, _ in stages_of(run)[:-1]:
            axes[2].axvline(end, color="k", linewidth=0.3)
    label_axes(axes[0], "PFLOPs", "held-out loss, nats a token", "whole model")
    label_axes(axes[1], "seconds (median steps)", "held-out loss, nats a token", "whole model")
    label_axes(axes[2], "step", f"training loss, mean of {_AROUND} steps", "what is trained", whole=True)
    share_legend(figure, axes)
    write_figure(path, figure)


if __name__ == "__main__":
    run_experiment(main, EvolvingSubnetworksConfig, open_presets(PRESETS))
