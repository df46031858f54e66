"""Plots of opinion mining."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.opinion_mining.measures import WAYS
from experiments.opinion_mining.study import ARMS, RATES
from jaxllm.plots import label_axes, share_legend


def plot(out: Path, config, found: dict[str, Any]) -> None:
    """Draw what was found into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    if "learning" in found:
        _learning(out, config, found["learning"])
        _decoding(out, found["decoding"])
        _counting(out, found["counting"])
    if "pairs" in found:
        _discoveries(out, config, found)
    if "communitylm" in found:
        _survey(out, found["communitylm"])
    for corpus in ("reviews", "addresses"):
        if corpus in found:
            _insights(out, corpus, found[corpus])


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _figure(columns: int, width: float = 9.0):
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, 3.4), layout="constrained", squeeze=False)


def _learning(out, config, learning) -> None:
    figure, [axes] = _figure(len(ARMS))
    for axis, arm in zip(axes, ARMS, strict=True):
        for part, label in (("seen", "spoken of"), ("held_out", "held out")):
            values = np.array([one[f"{part}/mae"] for one in learning[arm]["curve"]])
            mean, spread = values.mean(axis=1), values.std(axis=1)
            [line] = axis.plot(config.reads, mean, "o-", label=label)
            axis.fill_between(config.reads, mean - spread, mean + spread, color=line.get_color(), alpha=0.2)
        axis.axhline(np.abs(np.array(RATES) - 0.5).mean(), color="gray", ls=":", label="says one half of all")
        axis.axvline(learning[arm]["stop"], color="gray", lw=0.7)
        axis.set_ylim(0, 0.36)
        title = {"adapter": "adapter and words' table", "scratch": "no pretraining"}.get(arm, "all weights")
        label_axes(axis, "steps of tuning", "error of the positive share", title, whole=True)
    share_legend(figure, axes)
    _save(figure, out / "learning.png")


def _decoding(out, decoding) -> None:
    figure, [[axis]] = _figure(1, 5.5)
    shown = [name for name in decoding if name != "samples"]
    for name in shown:
        one = decoding[name]
        axis.plot(RATES, one["seen/rho"], "o-", lw=1, label=f"temperature {name.replace(',', ', top-p')}")
    axis.plot([0, 1], [0, 1], color="gray", ls=":")
    label_axes(axis, "positive share written", "positive share read", "Decoding sharpens opinions")
    axis.legend(fontsize=6)
    _save(figure, out / "decoding.png")


def _counting(out, counting) -> None:
    figure, [[axis]] = _figure(1, 5.5)
    texts = counting["texts_of_a_target"]
    for way, errors in counting["errors"].items():
        mean = np.mean(errors, axis=0)
        axis.plot([*texts, texts[-1] / 4], [*mean[: len(texts)], mean[-1]], "o-", label=way)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    label_axes(axis, "sentences about a target (leftmost: none)", "error of the positive share")
    axis.legend(fontsize=8)
    _save(figure, out / "counting.png")


def _discoveries(out, config, found) -> None:
    figure, [[left, right]] = _figure(2)
    at = np.arange(len(WAYS))
    for shift, part in ((-0.2, "seen"), (0.2, "held_out")):
        wrong = [found["null_pairs"][f"{part}/{way}/any_false"] / config.null_pairs for way in WAYS]
        left.bar(at + shift, wrong, 0.38, label=part.replace("_", " "))
        right.bar(at + shift, [found["pairs"][f"{part}/{way}/recall"] for way in WAYS], 0.38)
    left.axhline(config.level, color="gray", ls=":", label="nominal")
    for axis, title in ((left, "no difference: pairs with a false insight"), (right, "differences found")):
        label_axes(axis, "replicates", "share", title)
        axis.set_ylim(0, 1)
        axis.set_xticks(at, [way.replace(" ", "\n", 1) for way in WAYS], fontsize=7)
    share_legend(figure, [left])
    _save(figure, out / "discoveries.png")


def _survey(out, found) -> None:
    shown = [name for name in ("authors", "lexicon", "classifier") if name in found]
    figure, [axes] = _figure(len(shown))
    for axis, name in zip(axes, shown, strict=True):
        axis.scatter(found[name]["gold_gap"], found[name]["gap"], s=12)
        axis.axhline(0, color="gray", lw=0.7)
        axis.axvline(0, color="gray", lw=0.7)
        label_axes(axis, "survey: Republicans less Democrats", "stance of lines", f"scored by {name}")
    _save(figure, out / "communitylm.png")


def _insights(out, corpus, found) -> None:
    figure, [axes] = _figure(2 if "halves" in found else 1, 8)
    for axis, label in zip(axes, [k for k in ("populations", "halves") if k in found], strict=True):
        rows = found[label]["rows"]
        for place, (row, counted) in enumerate(zip(rows, found[label]["counted"]["rows"], strict=True)):
            axis.plot(row["interval"], [place, place], color="C0", label="generated, bootstrapped refits")
            axis.plot(row["h"], place, "o", color="C0")
            axis.plot(counted["h"], place, "x", color="C1", label="counted in the texts")
        axis.axvline(0, color="gray", lw=0.7)
        label_axes(axis, "Cohen's h of the positive share", "", f"{corpus}: {label}")
        axis.set_yticks(range(len(rows)), [row["class"] for row in rows])
    share_legend(figure, axes)
    _save(figure, out / f"insights-{corpus}.png")
