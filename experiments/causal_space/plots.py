"""The pictures of `causal_space`: a map of what a probe says, probes by depth, effects by displacement."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from experiments.causal_space.claims import effect
from experiments.causal_space.study import ARMS, SPLITS
from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend

_COLORS = dict(zip(ARMS, ("C3", "C0", "C1", "C2", "C7"), strict=True))
_SAID = {
    "gradient": "the probe's gradient", "another": "another place's",
    "shuffled": "probe of dealt-out coordinates",
    "orthogonal": "unseen by the probe", "random": "random",
}  # fmt: skip


def plot(folder: Path, name: str, runs: list[dict]) -> None:
    """Write NAME-map.png, NAME-depths.png and, of what says next words, NAME-edits.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    _map(figure.subplots(), name, runs[0]["map"])
    write_figure(folder / f"{name}-map.png", figure)
    figure = Figure(figsize=(12, 4), layout="constrained")
    _depths(figure, runs)
    write_figure(folder / f"{name}-depths.png", figure)
    if "edits" in runs[0]:
        figure = Figure(figsize=(12, 4), layout="constrained")
        _edits(figure, runs)
        write_figure(folder / f"{name}-edits.png", figure)


def outline() -> list[np.ndarray]:
    """Return coastlines as arrays of (longitude, latitude), if an installed package carries some.

    vega_datasets has a small one in its folder; nothing is downloaded.
    """
    spec = importlib.util.find_spec("vega_datasets")
    path = Path(spec.origin).parent / "_data" / "world-110m.json" if spec and spec.origin else Path()
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    scale, shift = (np.array(content["transform"][name]) for name in ("scale", "translate"))
    return [np.cumsum(np.array(arc), axis=0) * scale + shift for arc in content["arcs"]]


def _map(axis, name, found):
    """Draw where held-out places are and where the probe puts them, joined by lines."""
    for line in outline():
        cuts = np.flatnonzero(np.abs(np.diff(line[:, 0])) > 180) + 1
        for part in np.split(line, cuts):
            axis.plot(part[:, 0], part[:, 1], color="0.75", lw=0.5)
    (lat, lng), (said_lat, said_lng) = (map(np.array, found[kind]) for kind in ("true", "said"))
    near = np.abs(lng - said_lng) < 180  # the others would be drawn across the whole map
    pairs = np.stack([lng, said_lng])[:, near], np.stack([lat, said_lat])[:, near]
    axis.plot(*pairs, color="0.5", lw=0.3, alpha=0.5)
    axis.scatter(lng, lat, s=6, color="C0", label="where it is")
    axis.scatter(said_lng, said_lat, s=6, color="C3", label="where the probe puts it")
    axis.set(xlim=(-180, 180), ylim=(-90, 90), aspect="equal")
    title = f"{name}: ridge probe at depth {found['depth']}, places whose region it has not seen"
    label_axes(axis, "longitude, degrees", "latitude, degrees", title)
    axis.legend(loc="lower left", fontsize=8)


def _depths(figure, runs):
    left, middle, right = figure.subplots(1, 3)
    mean = lambda read: np.mean([read(run) for run in runs], axis=0)
    depths = runs[0]["probes"]["depths"]
    for at, split in enumerate(SPLITS):
        for axis, figure_name in ((left, "r2"), (middle, "km")):
            values = mean(lambda run, s=split, f=figure_name: run["probes"][s][f])
            axis.plot(depths, values, color=f"C{at}", marker=".", label=f"{split} held out")
            if f"mlp_{figure_name}" in runs[0]["probes"][split]:
                values = mean(lambda run, s=split, f=figure_name: run["probes"][s][f"mlp_{f}"])
                axis.plot(runs[0]["probes"][split]["mlp_depths"], values, color=f"C{at}", ls=":", marker="x",
                          label=f"{split} held out, MLP")  # fmt: skip
    for at, kind in enumerate(runs[0]["peers"]):
        values = mean(lambda run, k=kind: run["peers"][k]["probes"]["regions"]["r2"])
        left.plot(depths, values, color="0.6", ls=("--", "-.")[at], label=f"regions held out, {kind}")
    low = min(mean(lambda run, s=s: run["probes"][s]["r2"]).min() for s in SPLITS)
    left.set_ylim(max(-0.5, low - 0.1), 1)
    label_axes(left, "depth (layers)", "R2 of unit vectors", "what a probe says", whole=True)
    label_axes(middle, "depth (layers)", "median error, km", "how far off", whole=True)
    likeness = runs[0]["similarity"]
    for at, measure in enumerate(("spearman", "pearson", "cka")):
        for kind, style in (("score", "-"), ("null", ":")):
            values = mean(lambda run, m=measure, k=kind: run["similarity"][m][k])
            label = {"spearman": "Spearman", "pearson": "Pearson", "cka": "CKA"}[measure]
            right.plot(likeness["depths"], values, ls=style, color=f"C{at + 3}", marker=".",
                       label=label if kind == "score" else f"{label}, permuted")  # fmt: skip
    label_axes(right, "depth (layers)", "similarity", "states against the globe", whole=True)
    share_legend(figure, (left, middle, right))


def _edits(figure, runs):
    axes = figure.subplots(1, 3, sharey=True)
    displacements = sorted({one["displacement"] for one in runs[0]["edits"]["edits"]})
    titles = {"towards": "towards its coordinates", "away": "away from them",
              "relocate": "to another place's: that place's country"}  # fmt: skip
    for axis, (way, title) in zip(axes, titles.items(), strict=True):
        for arm in ARMS:
            values = [np.mean([effect(run, way, arm, "name", displacement=far).mean() for run in runs])
                      for far in displacements]  # fmt: skip
            axis.plot([0, *displacements], [0, *values], marker=".", color=_COLORS[arm], label=_SAID[arm])
        axis.axhline(0, color="k", lw=0.5)
        label_axes(axis, "displacement, of a state's length",
                   "nats of the country's name" if axis is axes[0] else "", title)  # fmt: skip
    share_legend(figure, axes)
