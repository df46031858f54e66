"""MAD's synthetic tasks on attention, Mamba, hand-made mixtures of their blocks, and hybrids of both.

VERDICT: Undecided: the hybrid of two blocks is 0.026 above its better part (-0.052 to 0.104); it equals the
better of two hand-made mixtures (-0.002).

RESULT (1 December 2026, small, 37 minutes on one shared core, three seeds): over two tasks the hybrid of two
blocks is 0.026 above its better part (-0.052 to 0.104), 0.005 and 0.004 above that part at equal parameters
and FLOPs: undecided. It is as good as the better of MambaFormer and the striped model (-0.002, -0.011 to
0.008). Recall: 0.998, Mamba 0.96, attention 0.62; copying: 0.991, attention 0.98, Mamba 0.88. At equal weight
updates and data, alternating search, simultaneous search, GAEA and mixtures from a held-out half end within
0.001 of each other; DASH ends 0.21 lower (0.12 to 0.31). What is searched is not told from uniform, random or
programmed mixtures. Rounding to one part a block costs 0.50 (-0.14 to 1.13).

    python -m experiments.mad                                    # small: 102 runs, 40 minutes on one core
    python -m experiments.mad --preset debug                     # half a minute
    python -m experiments.mad --preset paper                     # the paper's sizes, for an accelerator

On your own model: `jaxllm.synthetic.draw_instances`, for any model; `jaxllm.models.HybridConfig`.

Roberts et al., Manticore (arXiv 2406.00894): hybrids of whole models, mixed by weights that are searched.
Here they are trained from scratch on the tasks of Poli et al. (arXiv 2403.17844; `jaxllm.synthetic`):

- hybrids of one and two blocks beside their parts, at equal steps; beside each part made so wide that it has
  as many parameters, or costs as many FLOPs, and beside the mean of both parts' probabilities;
- beside MambaFormer and a striped model, which people put together by hand;
- searches: simultaneous, alternating, on the weights' half or on one held out, GAEA, DASH, weights moved as
  often in each; mixtures that are given and frozen: uniform, random, searched, programmed from the other
  tasks, and a sweep; mixtures rounded to one part;
- how far programmed mixtures agree with searched ones, and when each model first reaches 0.9.

The small run is of fewer ids (8), half the width (32) and 500 steps at a higher rate than the independent
re-implementation's: in some thousand steps every model solves recall, so look at when. Two tasks have all
arms; two more are proxies alone. The attention part is a GPT-2 with learned positions, and hybrids have no
projectors, as the paper's proxies; mad-lab's striped model has Hyena, which is not here, where this has
Mamba. Finished cells are kept in OUT/cells.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.grid import check_seeds, publish, run_grid
from experiments.mad.arms import PARTS, Sizes
from experiments.mad.report import given_mixture, judge, metrics, plot, sections
from experiments.mad.solvers import accuracy, look_up, most_frequent
from experiments.mad.study import FIRST_HALF, GIVEN, HYBRIDS, SWEEP, TRAINED, Study, Training
from jaxllm import compilation_cache
from jaxllm.config import Config, Seed, UserPath
from jaxllm.errors import UserError, unknown
from jaxllm.report import Report
from jaxllm.synthetic import MAD, MANTICORE, MadTask, draw_instances
from jaxllm.train import to_dict

# Such as small models learn within some hundred steps; the re-implementation's have 16 ids and 32 tokens.
SHORT = {
    name: dataclasses.replace(MAD[name], test=640, **change)
    for name, change in {
        "in_context_recall": dict(vocab_size=8, length=32, train=4096),
        "noisy_recall": dict(vocab_size=12, noise_vocab=4, length=32, train=4096),
        "fuzzy_recall": dict(vocab_size=8, length=32, train=4096),
        "memorisation": dict(vocab_size=64),
        "selective_copying": dict(vocab_size=8, length=24, copied=4, train=4096),
        "compression": dict(vocab_size=8, length=12, train=4096),
    }.items()
}
TINY = {  # of one length and vocabulary: a program serves both
    name: dataclasses.replace(MAD[name], vocab_size=12, length=8, train=64, test=32, **change)
    for name, change in {"in_context_recall": {}, "noisy_recall": dict(noise_vocab=4)}.items()
}
SIZES = {"tiny": TINY, "short": SHORT, "mad": MAD, "manticore": MANTICORE}
SEARCHED = ("alternating", FIRST_HALF, "held out", "GAEA", "DASH")


@dataclass(frozen=True)
class MadConfig(Config):
    """Which tasks, at which size, and how models are trained."""

    tasks: tuple[str, ...] = ("in_context_recall", "selective_copying")  # of all arms
    proxies: tuple[str, ...] = ("noisy_recall", "memorisation")  # of the hybrid of two blocks, to program by
    sizes: Literal[tuple(SIZES)] = "short"
    arms: tuple[str, ...] = TRAINED
    search_task: str = "in_context_recall"  # of the searches and given mixtures
    searches: tuple[str, ...] = (*SEARCHED, *GIVEN, *SWEEP)
    models: Sizes = Sizes()
    training: Training = Training()
    seeds: tuple[Seed, ...] = (0, 1, 2)
    out: UserPath = "runs/mad"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)
        for name in (*self.tasks, *self.proxies, self.search_task):
            if name not in SIZES[self.sizes]:
                raise unknown(f"task at the sizes '{self.sizes}':", name, SIZES[self.sizes])
        for field, known in (("arms", TRAINED), ("searches", (*SEARCHED, *GIVEN, *SWEEP))):
            for name in getattr(self, field):
                if name not in known:
                    raise unknown(f"name in {field}:", name, known)
        if missing := [arm for arm in (*PARTS, *HYBRIDS) if arm not in self.arms]:
            raise UserError(f"arms leave out {missing[0]}, which claims are of; name it too")
        if self.search_task not in self.tasks:
            raise UserError(f"search_task is {self.search_task}; name it in tasks too")
        if twice := set(self.tasks) & set(self.proxies):
            raise UserError(f"{min(twice)} is among tasks and proxies; name it in one of them")


PRESETS = {
    "small": MadConfig,
    "debug": lambda: MadConfig(
        tasks=("in_context_recall",), proxies=("noisy_recall",), sizes="tiny", arms=(*PARTS, *HYBRIDS),
        searches=(), models=Sizes(embed_dim=8, num_heads=2, state_dim=2),
        training=Training(steps=4, points=2, batch_size=8), seeds=(0, 1), out="runs/mad-debug",
    ),
    "paper": lambda: MadConfig(
        tasks=tuple(MANTICORE), proxies=(), sizes="manticore",
        models=Sizes(embed_dim=128, num_heads=16, attention_layers=2, mamba_layers=4, state_dim=16),
        training=Training(steps=200 * 7, batch_size=128, points=20, learning_rate=5e-4),
        out="runs/mad-paper",  # 200 epochs of 800
    ),
}  # fmt: skip


def main(config: MadConfig, preset: str = "custom") -> Report:
    """Train all cells that are not there yet; write the report into `config.out`."""
    started = time.time()
    compilation_cache.enable()
    every = {name: SIZES[config.sizes][name] for name in (*config.tasks, *config.proxies)}
    tasks = {name: every[name] for name in config.tasks}
    study = Study(every, config.models, config.training, config.out)
    variants = [(name, arm) for name in tasks for arm in config.arms]
    variants += [(name, "hybrid 2") for name in config.proxies]
    cells = run_grid(variants, config.seeds, lambda variant, seed: study.run(*variant, seed))
    for name in tasks:
        cells[name, "ensemble"] = [{"accuracy": study.ensemble(name, seed)} for seed in config.seeds]
    cells |= _searches(config, study, cells)
    controls = {name: _controls(task, config.seeds[0]) for name, task in tasks.items()}
    plot(cells, tasks, config.search_task, Path(config.out))
    report = Report(
        experiment="mad", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics(cells), claims=judge(cells, tasks, config.search_task),
        seconds=time.time() - started, sections=sections(cells, tasks, config.search_task, controls),
    )  # fmt: skip
    return publish(report, config.out)


def _searches(config: MadConfig, study: Study, cells) -> dict:
    """Return the cells of searches and given mixtures, all on one task."""
    name, seeds = config.search_task, config.seeds

    def run(variant, seed):
        arm, mixture = variant[1], None
        if arm in GIVEN:
            mixture = given_mixture(arm, cells, study.tasks, name, seeds.index(seed), seed)
        if arm in SWEEP:
            mixture = np.array([[SWEEP[arm], 1 - SWEEP[arm]]])
        return study.run(name, arm, seed, mixture)

    return run_grid([(name, arm) for arm in config.searches], seeds, run)


def _controls(task: MadTask, seed: int) -> dict[str, float]:
    """Return what no training is needed for, and what none can pass."""
    train, test = (draw_instances(task, part, seed) for part in ("train", "test"))
    found = {
        "guessing": task.guess_level, "ceiling": task.ceiling,
        "looking up": accuracy(test, look_up(task, train, test.inputs_NT)),
        "the commonest value so far": accuracy(test, most_frequent(task, test.inputs_NT)),
    }  # fmt: skip
    return found
