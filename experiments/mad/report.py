"""What the cells of MAD's study come to: claims with intervals and controls, tables, pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.grid import seeds_claim, spread
from experiments.mad.arms import HAND_MADE, PARTS
from experiments.mad.study import FIRST_HALF, HYBRIDS, TRAINED, WIDE
from experiments.shared.epochs import steps_to
from experiments.shared.equal_size import EQUAL
from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, format_figure, markdown_table
from jaxllm.synthetic import MadTask

_BLOG, _CODE, _REVIEWS, _OURS = "its blog", "its code", "its reviews", "this experiment"
_NEAR = 0.02  # of accuracy: as good as
_SOLVED = 0.9

Cells = dict[tuple[str, str], list[dict[str, Any]]]  # (task, arm) -> a cell a seed


class Judge:
    """Reads cells; every figure is an array over seeds."""

    def __init__(self, cells: Cells, tasks: dict[str, MadTask], search_task: str):
        self.cells, self.tasks, self.search_task = cells, tasks, search_task
        self.claims: list[Claim] = []
        self.arms = [arm for arm in TRAINED if (search_task, arm) in cells]  # of all tasks

    def accuracy(self, task: str, arm: str, name: str = "accuracy") -> np.ndarray:
        """Return an arm's accuracy after the last step."""
        return np.array([one[name] for one in self.cells[task, arm]])

    def better(self, task: str, arms: tuple[str, ...]) -> np.ndarray:
        """Return the accuracy of the arm that is best on average over the seeds."""
        return max((self.accuracy(task, arm) for arm in arms), key=np.mean)

    def gap(self, arm: str, others: tuple[str, ...]) -> np.ndarray:
        """Return how far an arm is above the best of others, a task's best each; the mean over tasks."""
        return np.mean([self.accuracy(task, arm) - self.better(task, others) for task in self.tasks], axis=0)

    def solved(self, task: str, arm: str) -> np.ndarray:
        """Return after which part of its steps an arm first reached 0.9; above 1: never."""
        parts = []
        for one in self.cells[task, arm]:
            curve = one["curve"]
            last, every = curve[-1]["step"], curve[0]["step"]
            parts.append(min(steps_to(curve, _SOLVED), last + every) / last)
        return np.array(parts)

    def claim(self, text: str, source: str, values, paper: float | None = None, **bounds) -> None:
        """Add a claim on the mean over seeds."""
        self.claims.append(seeds_claim(text, source, values, paper=paper, **bounds))

    def final_mixtures(self, task: str, arm: str = "hybrid 2") -> np.ndarray:
        """Return [seeds, blocks, parts]."""
        return np.array([one["curve"][-1]["mixture"] for one in self.cells[task, arm]])


def judge(cells: Cells, tasks: dict[str, MadTask], search_task: str) -> list[Claim]:
    """Return the claims, the headline first."""
    j, best = Judge(cells, tasks, search_task), "hybrid 2"
    on_average = f"mean over {len(tasks)} tasks"
    j.claim(f"the hybrid of two blocks is above the better part at equal steps, accuracy, {on_average}",
            _BLOG, j.gap(best, PARTS), above=0)  # fmt: skip
    for what in EQUAL:
        if wide := tuple(arm for arm in j.arms if arm in WIDE and arm.endswith(what)):
            j.claim(f"and above the better part made wider to equal {what}", _REVIEWS,
                    j.gap(best, wide), above=0)  # fmt: skip
    j.claim("and above the mean of both parts' probabilities", _REVIEWS, j.gap(best, ("ensemble",)), above=0)
    if hand_made := tuple(arm for arm in j.arms if arm in HAND_MADE):
        j.claim(f"it equals or approaches the better of {' and '.join(hand_made)}, within {_NEAR}",
                _BLOG, j.gap(best, hand_made), at_least=-_NEAR)  # fmt: skip
    faster = [j.solved(task, best) - np.min([j.solved(task, one) for one in PARTS], axis=0) for task in tasks]
    j.claim(f"it reaches {_SOLVED} before the faster part, share of the steps, {on_average}", _OURS,
            np.mean(faster, axis=0), below=0)  # fmt: skip
    rounding = [j.accuracy(task, best, "one_hot_accuracy") - j.accuracy(task, best) for task in tasks]
    j.claim(f"rounded to one part a block it loses less than {_NEAR}, {on_average}", _BLOG,
            np.mean(rounding, axis=0), at_least=-_NEAR)  # fmt: skip
    searched = [task for task, arm in cells if arm == best]
    if len(searched) > 2:
        found = np.array([j.final_mixtures(task)[..., 0] for task in searched])  # [tasks, seeds, blocks]
        others = (found.sum(0) - found) / (len(searched) - 1)
        correlations = [_correlation(others[:, seed].ravel(), found[:, seed].ravel())
                        for seed in range(found.shape[1])]  # fmt: skip
        j.claim("mixtures programmed from the other tasks agree with those searched, correlation", _OURS,
                correlations, above=0)  # fmt: skip
    _judge_searches(j)
    return j.claims


def _judge_searches(j: Judge) -> None:
    def minus(one, other):
        return j.accuracy(j.search_task, one) - j.accuracy(j.search_task, other)

    def has(*arms):
        return all((j.search_task, arm) in j.cells for arm in arms)

    where = f"on {j.search_task}, accuracy"
    if has("alternating"):
        j.claim(f"alternating search ends above simultaneous, {where}", _CODE,
                minus("alternating", "hybrid 2"), above=0)  # fmt: skip
    if has(FIRST_HALF, "held out"):
        j.claim(f"mixtures from a held-out half end above those from the weights' own half, {where}", _OURS,
                minus("held out", FIRST_HALF), above=0)  # fmt: skip
    for search in ("DASH", "GAEA"):
        if has("alternating", search):
            j.claim(f"alternating DARTS ends above {search}, {where}", _CODE,
                    minus("alternating", search), above=0)  # fmt: skip
    for other in ("uniform", "random", "programmed"):
        if has("searched", other):
            j.claim(f"a searched mixture, frozen, ends above a {other} one, {where}", _OURS,
                    minus("searched", other), above=0)  # fmt: skip
    alphas = [arm for task, arm in j.cells if task == j.search_task and arm.startswith("alpha ")]
    if alphas:
        sweep = (*alphas, *PARTS)
        regret = j.better(j.search_task, sweep) - j.accuracy(j.search_task, "hybrid 1")
        j.claim(f"the search of one block loses less than {_NEAR} to the best of a sweep, {where}", _OURS,
                regret, below=_NEAR)  # fmt: skip


def _correlation(one, other) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nan_to_num(np.corrcoef(one, other)[0, 1]))


def metrics(cells: Cells) -> dict[str, float]:
    """Return every cell's mean accuracy, sizes and seconds."""
    found = {}
    for (task, arm), seeds in cells.items():
        name = f"{task}/{arm.replace(' ', '_')}"
        found[f"accuracy/{name}"] = float(np.mean([one["accuracy"] for one in seeds]))
        if "parameters" in seeds[0]:
            found[f"parameters/{name}"] = float(seeds[0]["parameters"])
            found[f"flops_per_token/{name}"] = float(seeds[0]["flops"])
            found[f"cpu_seconds/{name}"] = float(np.mean([one["cpu_seconds"] for one in seeds]))
    return found


def sections(cells: Cells, tasks: dict[str, MadTask], search_task: str, controls: dict) -> dict[str, str]:
    """Return tables: accuracy, when 0.9 is reached, searches, mixtures.

    Args:
      controls: task -> {what needs no training: its accuracy}.
    """
    j = Judge(cells, tasks, search_task)
    rows = [[arm, *(spread(j.accuracy(task, arm)) for task in tasks)] for arm in (*j.arms, "ensemble")]
    names = list(next(iter(controls.values())))
    rows += [[name, *(f"{controls[task][name]:.4f}" for task in tasks)] for name in names]
    sizes = [[arm, *(_size(cells[task, arm][0]) for task in tasks)] for arm in j.arms]
    when = [[arm, *(spread(j.solved(task, arm)) for task in tasks)] for arm in j.arms]
    found = {
        "Accuracy after the last step": markdown_table(["", *tasks], rows),
        f"Share of the steps until accuracy {_SOLVED}; above 1: never": markdown_table(["", *tasks], when),
        "Parameters, and FLOPs of a training step a token": markdown_table(["", *tasks], sizes),
    }
    others = [arm for task, arm in cells if task == search_task and arm not in (*TRAINED, "ensemble")]
    rows = [[arm, spread(j.accuracy(search_task, arm)), _mixture(cells[search_task, arm])]
            for arm in ("hybrid 2", *others)]  # fmt: skip
    head = ["search, or mixture that is given", "accuracy", "attention's share by block, a seed each"]
    found[f"Searches and given mixtures, {search_task}"] = markdown_table(head, rows)
    names = list(dict.fromkeys(task for task, arm in cells if arm in HYBRIDS))
    rows = [[task, *(_mixture(cells.get((task, arm), [])) for arm in HYBRIDS)] for task in names]
    found["Attention's share by block, a seed each"] = markdown_table(["task", *HYBRIDS], rows)
    return found


def _size(cell) -> str:
    return f"{format_figure(cell['parameters'])}, {format_figure(cell['flops'])}"


def _mixture(seeds) -> str:
    last = [one["curve"][-1].get("mixture") for one in seeds if one["curve"]]
    return "; ".join(" ".join(f"{block[0]:.2f}" for block in one) for one in last if one)


def plot(cells: Cells, tasks: dict[str, MadTask], search_task: str, out: Path) -> None:
    """Write curves.png, mixtures.png (blocks over steps) and searches.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(tasks), 4.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for axis, task in zip(axes, tasks, strict=True):
        for number, arm in enumerate(arm for arm in TRAINED if (task, arm) in cells):
            curves = [one["curve"] for one in cells[task, arm]]
            style = dict(ls="--" if arm in WIDE else "-", color=f"C{number % 10}", lw=1.4)
            axis.plot(*_mean_curve(curves, lambda one: one["accuracy"]), label=arm, **style)
        label_axes(axis, "step", "test accuracy" if axis is axes[0] else "", task, whole=True)
    share_legend(figure, axes)
    write_figure(out / "curves.png", figure)

    figure = Figure(figsize=(4.2 * len(tasks), 4.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for axis, task in zip(axes, tasks, strict=True):
        for arm, ls in zip(HYBRIDS, ("--", "-"), strict=True):
            blocks = len(cells[task, arm][0]["curve"][-1]["mixture"])
            for block in range(blocks):
                for number, one in enumerate(cells[task, arm]):
                    x, y = _mean_curve([one["curve"]], lambda point: point["mixture"][block][0])  # noqa: B023
                    label = f"{arm}, block {block + 1}" if number == 0 else None
                    axis.plot(x, y, ls, color=f"C{block + (arm == 'hybrid 2')}", alpha=0.8, label=label)
        axis.axhline(0.5, color="0.6", lw=0.8)
        axis.set_ylim(0, 1)
        label_axes(axis, "step", "attention's share" if axis is axes[0] else "", task, whole=True)
    share_legend(figure, axes)
    write_figure(out / "mixtures.png", figure)

    others = [arm for task, arm in cells if task == search_task and arm not in (*TRAINED, "ensemble")]
    arms = ["hybrid 1", "hybrid 2", *others]
    figure = Figure(figsize=(max(6, 0.6 * len(arms)), 4), layout="constrained")
    axis = figure.subplots()
    for at, arm in enumerate(arms):
        values = [one["accuracy"] for one in cells[search_task, arm]]
        axis.plot([at] * len(values), values, "o", color="C0", alpha=0.6)
        axis.plot(at, np.mean(values), "_", color="C3", ms=18, mew=2)
    axis.set_xticks(range(len(arms)), arms, rotation=40, ha="right")
    axis.grid(axis="y", alpha=0.3)
    axis.set(ylabel="test accuracy", title=f"{search_task}: searches and given mixtures; a dot a seed")
    write_figure(out / "searches.png", figure)


def _mean_curve(curves, read):
    points = min(map(len, curves))
    steps = [one["step"] for one in curves[0][:points]]
    return steps, np.mean([[read(one) for one in curve[:points]] for curve in curves], axis=0)


def given_mixture(kind: str, cells: Cells, tasks, task: str, seed_at: int, seed: int) -> np.ndarray:
    """Return the mixture of a kind in `GIVEN`, [blocks, parts], from the cells of the simultaneous search."""
    own = np.array(cells[task, "hybrid 2"][seed_at]["curve"][-1]["mixture"])
    match kind:
        case "uniform":
            return np.full_like(own, 1 / own.shape[1])
        case "random":
            return np.random.default_rng([seed, 9]).dirichlet(np.ones(own.shape[1]), len(own))
        case "searched":
            return own
    others = [one for one in tasks if one != task]
    if not others:  # nothing to program from
        return np.full_like(own, 1 / own.shape[1])
    return np.mean([cells[one, "hybrid 2"][seed_at]["curve"][-1]["mixture"] for one in others], axis=0)
