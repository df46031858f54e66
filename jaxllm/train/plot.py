"""The curves of a run as a picture."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.train.interrupt import Interrupted
from jaxllm.train.writers import read_metrics


def plot_curves(folder, *, baselines: Mapping[str, float] | None = None) -> Path:
    """Draw loss, held-out bits per byte and learning rate of a run into FOLDER/curves.png.

    Args:
      folder: a run's `out`, with its metrics.jsonl.
      baselines: name -> bits per byte, drawn as horizontal lines.
    """
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)

    def draw(axis, name, **style):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), **style)

    draw(axes[0], "loss", color="C0", label="training", linewidth=0.8)
    for axis, unit in ((axes[0], "loss"), (axes[1], "bits_per_byte")):  # only text has bits per byte
        draw(axis, f"heldout_{unit}", color="C1", label="held out", marker="o")
        draw(axis, f"final_{unit}", color="C3", label="held out, all of it", marker="*", linestyle="")
    for color, (name, value) in enumerate((baselines or {}).items(), 4):
        axes[1].axhline(value, label=name, linestyle="--", color=f"C{color}")
    draw(axes[2], "learning_rate", color="C0")
    titles = ("loss, nats a token", "bits per byte of held-out text", "learning rate")
    for axis, title in zip(axes, titles, strict=True):
        label_axes(axis, "step", title, whole=True)
    share_legend(figure, axes)
    path = Path(folder) / "curves.png"
    write_figure(path, figure, dpi=85)
    return path


@contextlib.contextmanager
def curves_drawn(folder, wanted: bool) -> Iterator[None]:
    """Draw the curves of a run when the block ends, or is interrupted."""
    try:
        yield
    except Interrupted:
        if wanted:
            plot_curves(folder)
        raise
    if wanted:
        plot_curves(folder)
