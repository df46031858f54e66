"""Train with four savings at once, beside plain AdamW in float32: loss against FLOPs, memory and time.

VERDICT: In part: at width 256, where GPT-2's vocabulary is most of a step, groups, OrthoAdam and stochastic
rounding together end 0.013 of the loss below plain training, whose rate was not tuned for it, at 0.29 of the
FLOPs (by construction) and 0.76 of the memory; what each does alone was not run; with growing subnetworks too
it is 0.059 of the loss more, undecided against 0.02.

RESULT (30 November 2026, small, 9 runs, two hours of one shared core, three seeds): three of the four savings
together cost nothing: with groups, OrthoAdam and stochastic rounding the run ends 1.3 % below plain
training's held-out loss (0.9 to 1.7), with 0.29 of its FLOPs, 0.80 of its time and 0.76 of its memory. With
growing subnetworks too it is 5.9 % above (-0.2 to 12.0: undecided), with 0.21 of the FLOPs and 0.57 of the
time. No saving was run alone: groups gain elsewhere (vocabulary_compression: 0.957 of the loss), so the other
two may cost what they give. The plain run has the rate that subnetworks bear; claims on FLOPs hold by
construction.

    python -m experiments.cheaper_training                   # small: 9 runs, two hours on one core
    python -m experiments.cheaper_training --preset debug    # a minute
    python -m experiments.cheaper_training --variants plain est groups orthoadam sr est+groups+orthoadam+sr

On your own model: `jaxllm train --vocab-groups merge_tree --model.group-head own --precision bfloat16
--optim.name orthoadam_bf16_sr`, and `--subnetwork est-gpt2-like` for the fourth.

A variant is the plain run with parts of it replaced, in any combination:

- est: random subnetworks that grow to the whole model (arXiv 2406.06962)
- groups: a head that predicts a token's group, then the token (arXiv 2411.06371), with the token table's
  own vectors inside a group
- orthoadam: Adam in a rotated basis (arXiv 2410.17174)
- sr: bfloat16 without master weights, rounded stochastically: 8 bytes a parameter

FLOPs and seconds are counted as in `experiments.evolving_subnetworks`; memory is the compiled step's.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.evolving_subnetworks import flops, so_far, time_steps
from experiments.grid import check_seeds, column, publish, run_grid
from jaxllm import parallel, targets
from jaxllm.atomic import write_figure
from jaxllm.cli.experiment import run_experiment
from jaxllm.cli.train import open_presets
from jaxllm.config import Count, Seed
from jaxllm.errors import UserError, unknown
from jaxllm.models import get_preset
from jaxllm.optim import OptimConfig
from jaxllm.parallel import MeshConfig
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, Report, decide, markdown_table, t_interval
from jaxllm.text import TrainConfig, cached_result, plain_run, train
from jaxllm.train import to_dict
from jaxllm.train.writers import heldout_curve

PLAIN, ALL_BUT_EST, ALL = "plain", "groups+orthoadam+sr", "est+groups+orthoadam+sr"
PARTS = ("est", "groups", "orthoadam", "sr")
_OPTIMIZERS = {  # (orthoadam, sr)
    (False, False): "adamw",
    (True, False): "orthoadam",
    (False, True): "adamw_bf16_sr",
    (True, True): "orthoadam_bf16_sr",
}
_OURS = "this experiment"
_MOST = 0.02  # how much of plain training's loss the savings may cost


@dataclass(frozen=True)
class CheaperTrainingConfig(TrainConfig):
    """The plain run, and which savings to compare with it."""

    variants: tuple[str, ...] = (PLAIN, ALL_BUT_EST, ALL)  # parts joined by +; the first is compared with
    schedule: str = "est-gpt2-like"  # of est: one of `subnetwork.SCHEDULES`
    groups: str = "merge_tree"  # of groups: ORDER or ORDER:K
    group_head: str = "own"  # of groups: one of `models.config.GROUP_HEADS`
    seeds: tuple[Seed, ...] = (0, 1, 2)
    timing_rounds: Count = 5  # turns of each kind of step
    machines: tuple[str, ...] = ("cpu",)  # whose compilers' account of memory is reported

    def __post_init__(self):
        super().__post_init__()
        for variant in self.variants:
            parts_of(variant)
        if len(self.variants) < 2:
            raise UserError(f"variants is {self.variants}; give two or more to compare")
        check_seeds(self.seeds)


def parts_of(variant: str) -> tuple[str, ...]:
    """Return the parts of a variant, checked.

    Examples:
      >>> parts_of("est+sr")
      ('est', 'sr')
    """
    if variant == PLAIN:
        return ()
    parts = tuple(variant.split("+"))
    for part in parts:
        if part not in PARTS:
            raise unknown("part of a variant:", part, PARTS)
    return parts


def _debug() -> CheaperTrainingConfig:
    return CheaperTrainingConfig(
        model=get_preset("gpt2-nano", vocab_size=None), tokenizer="bytes", seq_len=32, batch_size=8, steps=15,
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=3), eval_every=5, eval_batches=2,
        final_eval_batches=4, variants=(PLAIN, "est+groups+sr"), schedule="layer-dropout",
        groups="merge_order", seeds=(0, 1), timing_rounds=2, out="runs/cheaper-training-debug",
    )  # fmt: skip


def _small() -> CheaperTrainingConfig:
    """GPT-2's vocabulary, which at this width is most of a plain step; a rate that subnetworks bear."""
    model = get_preset(
        "gpt2-micro", vocab_size=None, num_layers=6, embed_dim=256, num_heads=8, position="rotary"
    )
    return CheaperTrainingConfig(
        model=model, tokenizer="gpt2", seq_len=128, batch_size=8, steps=400,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=40), eval_every=40, eval_batches=10,
        final_eval_batches=60, out="runs/cheaper-training",
    )  # fmt: skip


def _paper() -> CheaperTrainingConfig:
    return CheaperTrainingConfig(
        model=get_preset("gpt2", remat="full"), data="tfds:openwebtext", tokenizer="gpt2",
        isolate_documents=False, seq_len=1024, batch_size=480, accumulate=5, steps=150_000,
        mesh=MeshConfig(8, 1, 1), optim=OptimConfig(warmup_steps=2000), eval_every=2000, eval_batches=200,
        final_eval_batches=2000, machines=("h100x8",), out="runs/cheaper-training-paper",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": _small, "paper": _paper}


def run_config(config: CheaperTrainingConfig, variant: str, seed: int = 0) -> TrainConfig:
    """Return the training run of a variant."""
    own = dict(seed=seed, out=str(Path(config.out, variant, f"seed-{seed}")), progress=False, keep_last=1,
               keep_best=0)  # fmt: skip
    run, parts = plain_run(config, **own), parts_of(variant)
    name = _OPTIMIZERS["orthoadam" in parts, "sr" in parts]
    changes = dict(optim=dataclasses.replace(run.optim, name=name))
    if "est" in parts:
        changes["subnetwork"] = config.schedule
    if "groups" in parts:
        changes["vocab_groups"] = config.groups
        changes["model"] = dataclasses.replace(run.model, group_head=config.group_head)
    if "sr" in parts:
        changes["precision"] = "bfloat16"
    return dataclasses.replace(run, **changes)


def train_once(run: TrainConfig) -> dict:
    """Train a run, unless it was; return its held-out loss, curve and FLOPs of a step of each stage."""

    def measure():
        trained = train(run)
        return dict(
            loss=trained.evaluation["loss"], curve=heldout_curve(run.out), flops=flops(trained.run.config)
        )  # fmt: skip

    return cached_result(Path(run.out, "outcome.json"), run, measure)


def main(config: CheaperTrainingConfig, preset: str = "custom") -> Report:
    """Train all variants, time and compile their steps; write the report into `config.out`."""
    if config.distributed:
        parallel.initialize()
    started, out = time.time(), Path(config.out)
    runs = {variant: run_config(config, variant) for variant in config.variants}
    outcomes = run_grid(runs, config.seeds, lambda *cell: train_once(run_config(config, *cell)))
    seconds = time_steps(runs, config.timing_rounds)
    peaks = {
        (variant, machine): targets.compile_train_step(run, machine).peak_bytes
        for variant, run in runs.items()
        for machine in config.machines
    }
    metrics, claims, table = judge(config, runs, outcomes, seconds, peaks)
    _plot(runs, outcomes, seconds, peaks, config.machines[0], out / "cheaper.png")
    report = Report(
        experiment="cheaper_training", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections={"Variants": table},
    )  # fmt: skip
    return publish(report, out)


def judge(config, runs, outcomes, seconds, peaks) -> tuple[dict[str, float], list[Claim], str]:
    """Hold every variant against the first; return (metrics, claims, table)."""
    losses = column(outcomes, "loss")
    cost = {
        variant: {
            "petaflops": so_far(run, outcomes[variant][0]["flops"])[-1] / 1e15,
            "seconds": so_far(run, seconds[variant])[-1],
            **{f"peak_mib_{machine}": peaks[variant, machine] / 2**20 for machine in config.machines},
        }
        for variant, run in runs.items()
    }
    first, *others = config.variants
    metrics, claims = {}, []
    for variant, kinds in cost.items():
        metrics[f"heldout_loss/{variant}"] = float(losses[variant].mean())
        metrics |= {f"{kind}/{variant}": float(value) for kind, value in kinds.items()}
    for variant in others:
        more = losses[variant] / losses[first] - 1
        claims.append(Claim(f"{variant}: held-out loss at most {_MOST:.0%} above {first}'s", _OURS,
                            measured=float(more.mean()), interval=t_interval(more),
                            holds=decide(t_interval(more), at_most=_MOST)))  # fmt: skip
        for kind, value in cost[variant].items():
            share = value / cost[first][kind]
            claims.append(Claim(f"{variant}: {kind} below {first}'s", _OURS,
                                measured=float(share), holds=bool(share < 1)))  # fmt: skip
    rows = [
        (variant, f"{losses[variant].mean():.4f}", *(f"{value:.4g}" for value in cost[variant].values()))
        for variant in config.variants
    ]
    return metrics, claims, markdown_table(("variant", "held-out loss", *cost[first]), rows)


def _plot(runs, outcomes, seconds, peaks, machine, path):
    """Draw the held-out loss against FLOPs and seconds, and beside the peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for variant, run in runs.items():
        curve = np.mean([one["curve"] for one in outcomes[variant]], axis=0)
        at = curve[:, 0].astype(int)
        spent = so_far(run, outcomes[variant][0]["flops"])[at] / 1e15
        axes[0].plot(spent, curve[:, 1], marker=".", label=variant)
        axes[1].plot(so_far(run, seconds[variant])[at], curve[:, 1], marker=".", label=variant)
        axes[2].scatter(peaks[variant, machine] / 2**20, curve[-1, 1], label=variant)
    axes[2].set_xlim(0, 1.1 * max(peaks[variant, machine] for variant in runs) / 2**20)
    for axis, label in zip(axes, ("PFLOPs", "seconds (median steps)", f"peak MiB ({machine})"), strict=True):
        label_axes(axis, label, "held-out loss, nats a token")
    share_legend(figure, axes)
    write_figure(path, figure)


if __name__ == "__main__":
    run_experiment(main, CheaperTrainingConfig, open_presets(PRESETS))
