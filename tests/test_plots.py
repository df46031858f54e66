"""Axes have labels and written-out ticks, and a figure's one legend lies outside all of them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxllm.plots import label_axes, share_legend
from jaxllm.train.plot import plot_curves


def ticks(axis) -> list[str]:
    low, high = sorted(axis.get_view_interval())
    places = [place for place in axis.get_majorticklocs() if low <= place <= high]
    return axis.get_major_formatter().format_ticks(places)


@pytest.mark.parametrize(
    ("x", "log", "expected"),
    [
        (range(0, 20001, 1000), False, ["0", "5,000", "10,000", "15,000", "20,000"]),
        (np.linspace(0, 6e-4, 9), False, ["0", "0.0002", "0.0004", "0.0006"]),
        ([1e-4, 3e-4, 1e-3, 3e-3], True, ["0.0001", "0.0002", "0.0005", "0.001", "0.002"]),
        ([1e-6, 1e-1], True, ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]),
    ],
)
def test_ticks_are_written_out(x, log, expected):
    axis = Figure().subplots()
    axis.plot(x, np.ones(len(x)))
    axis.set_xscale("log" if log else "linear")
    label_axes(axis, "rate", "loss", "the end")
    assert [axis.get_xlabel(), axis.get_ylabel(), axis.get_title()] == ["rate", "loss", "the end"]
    shown = ticks(axis.xaxis)
    assert set(expected) <= set(shown) and len(shown) <= len(expected) + 2, shown


def test_a_count_has_no_ticks_between_whole_numbers():
    axis = Figure().subplots()
    axis.plot([0, 1, 2], [0, 1, 2])
    label_axes(axis, "layer", "kurtosis", whole=True)
    assert ticks(axis.xaxis) == ["0", "1", "2"]


def test_the_legend_covers_no_axes_and_names_each_line_once(tmp_path):
    rows = [{"step": s, "loss": 3.0, "learning_rate": 1e-3} for s in range(1, 20)]
    rows.append({"step": 19, "heldout_loss": 3.0, "heldout_bits_per_byte": 2.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plot_curves(tmp_path, baselines={"unigram": 3.0}).stat().st_size > 0

    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis in axes:
        for name in ("ours", "a rival with a long name", "another"):
            axis.plot([0, 1], [0, 1], label=name)
        label_axes(axis, "step", "loss")
    share_legend(figure, axes)
    figure.draw_without_rendering()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "a rival with a long name", "another"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.get_tightbbox()) for axis in axes)
