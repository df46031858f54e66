"""The pictures of `anchored_answers`: what edits do, and where in the model the anchor's letter is said."""

from pathlib import Path

import numpy as np

from experiments.anchored_answers.claims import EDIT, figures, like, mean_of
from jaxllm.atomic import write_figure
from jaxllm.report import t_interval

_VARIANTS = {
    "no edit": "no edit", EDIT: EDIT, "its part against the anchor": "  against A alone",
    "its part for the others": "  for others alone", "random row": "random rows",
    "other active": "other active rows", "random layer": "random layers",
    "output calibrated": "output calibrated",
}  # fmt: skip


def plot(folder: Path, name: str, runs: list[dict]) -> None:
    """Write NAME-edits.png and NAME-components.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.3, 1, 0.9))
    _edits(axes[0], runs)
    _sets(axes[1], runs)
    _oracles(axes[2], runs)
    figure.suptitle(f"{name}: held-out questions, the right answer at every place", fontsize=11)
    write_figure(folder / f"{name}-edits.png", figure)
    figure = Figure(figsize=(11, 4), layout="constrained")
    _components(figure, runs)
    write_figure(folder / f"{name}-components.png", figure)


def _bar(axis, place, values, width, **style):
    interval = t_interval(values)
    mean = float(np.mean(values)) if len(values) else 0.0
    error = None if interval is None else [[interval[1] - mean]] * 2
    axis.bar(place, mean, width, yerr=error, capsize=2, error_kw=dict(lw=1, clip_on=True), **style)


def _edits(axis, runs):
    for at, variant in enumerate(_VARIANTS):
        for shift, figure, color in ((-0.2, "accuracy", "C0"), (0.2, "anchored", "C3")):
            values = figures(runs, lambda run: like(run, variant, figure))  # noqa: B023
            said = {"accuracy": "accuracy", "anchored": "anchored-bias rate"}[figure]
            _bar(axis, at + shift, values, 0.38, color=color, label=said if at == 0 else None)
    axis.set_xticks(range(len(_VARIANTS)), list(_VARIANTS.values()), rotation=35, ha="right", fontsize=8)
    axis.set(ylim=(0, 1.25), title="gold-free edit and its controls")
    axis.legend(fontsize=8, ncols=2, loc="upper left")
    axis.grid(axis="y", alpha=0.3)


def _sets(axis, runs):
    names = list(dict.fromkeys(runs[0]["sets"]))
    for at, name in enumerate(names):
        for shift, variant, color in ((-0.2, "no edit", "C7"), (0.2, EDIT, "C0")):
            read = lambda run: run["variants"][variant]["anchored"][run["sets"] == name]  # noqa: B023
            _bar(axis, at + shift, figures(runs, read), 0.38, color=color, label=variant if at == 0 else None)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axis.set(ylim=(0, 1.25), title="anchored-bias rate by set")
    axis.legend(fontsize=8, ncols=2, loc="upper left")
    axis.grid(axis="y", alpha=0.3)


def _oracles(axis, runs):
    labels = {
        "right letter put in": "right letter", "wrong letter put in, and said": "a wrong letter, said",
        "right letter put in, random row": "right letter, random row",
    }  # fmt: skip
    bars = [(label, lambda run, what=what: run["oracle"][what], "C1") for what, label in labels.items()]
    for count in runs[0]["swaps"]:
        for heads, color in (("biased", "C2"), ("random", "C7")):
            read = lambda run, n=count, h=heads: run["swaps"].get(n, {}).get(h, np.array([]))
            bars.append((f"swap {count} {heads} heads", read, color))
    for at, (_, read, color) in enumerate(bars):
        _bar(axis, at, figures(runs, read), 0.7, color=color)
    axis.set_xticks(range(len(bars)), [label for label, *_ in bars], rotation=35, ha="right", fontsize=8)
    axis.set(ylim=(0, 1.25), title="ORACLE edits: failing prompts that say it")
    axis.grid(axis="y", alpha=0.3)


def _components(figure, runs):
    left, right = figure.subplots(1, 2)
    heads_LH = np.mean([run["maps"]["heads"] for run in runs], axis=0)
    largest = np.abs(heads_LH).max()
    image = left.imshow(heads_LH, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", origin="lower")
    left.set(xlabel="head", ylabel="layer", title="heads: logit of the anchor's letter over the right one")
    for axis in (left.xaxis, left.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=left)
    for outcome, color in (("failing", "C3"), ("succeeding", "C0")):
        per_run = [run["maps"][f"mlp_{outcome}"] for run in runs]
        if any(x.shape[1] < 2 for x in per_run):
            continue
        layers = range(len(per_run[0]))
        rows = [mean_of(runs, lambda run: run["maps"][f"mlp_{outcome}"][i]) for i in layers]  # noqa: B023
        means = np.array([mean for mean, _ in rows])
        low, high = np.array([interval for _, interval in rows]).T
        right.plot(layers, means, color=color, marker=".", label=f"{outcome} prompts")
        right.fill_between(layers, low, high, color=color, alpha=0.2)
    right.axhline(0, color="k", lw=0.5)
    right.set(xlabel="layer", ylabel="logits", title="MLPs: anchor's letter over the right one (95 %)")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
