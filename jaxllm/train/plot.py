"""The curves of a run as a picture."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxllm.atomic import write_figure
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

    def draw(axis, name, title, **style):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), **style)
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)

    draw(axes[0], "loss", "loss (nats a token)", label="train", linewidth=0.8)
    draw(axes[0], "heldout_loss", "loss (nats a token)", label="held out", marker="o")
    draw(axes[0], "final_loss", "loss (nats a token)", label="held out, all of it", marker="*", linestyle="")
    if axes[0].get_legend_handles_labels()[0]:  # a run may end before its first row
        axes[0].legend()
    draw(axes[1], "heldout_bits_per_byte", "held-out bits per byte", label="model", marker="o")
    draw(axes[1], "final_bits_per_byte", "held-out bits per byte", label="model, on all of it", marker="*",
         linestyle="")  # fmt: skip
    for color, (name, value) in enumerate((baselines or {}).items(), 1):
        axes[1].axhline(value, label=name, linestyle="--", color=f"C{color}")
    if axes[1].get_legend_handles_labels()[0]:  # only text has bits per byte
        axes[1].legend()
    draw(axes[2], "learning_rate", "learning rate")
    path = Path(folder) / "curves.png"
    write_figure(path, figure)
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
