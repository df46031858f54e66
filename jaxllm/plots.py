"""Axes that a person reads: labelled, ticks written out, one legend that covers no line."""

from collections.abc import Sequence
from typing import Any

from jaxllm.report import format_figure


def label_axes(axis: Any, x: str, y: str, title: str = "", *, whole: bool = False) -> None:
    """Label matplotlib axes, write their ticks out (20,000 and 0.0003, no 1e4 in a corner) and draw a grid.

    Call it when everything is drawn.

    Args:
      axis: matplotlib's Axes.
      x: what the horizontal axis shows, with its unit.
      y: what the vertical axis shows.
      title: of the axes.
      whole: the horizontal axis counts something: no ticks between whole numbers.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set(xlabel=x, ylabel=y, title=title)
    axis.grid(alpha=0.3)
    for one, integer in ((axis.xaxis, whole), (axis.yaxis, False)):
        if one.get_scale() == "log":
            low, high = sorted(one.get_view_interval())
            one.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            one.set_minor_locator(NullLocator())
        else:
            one.set_major_locator(MaxNLocator(6, integer=integer, steps=(1, 2, 2.5, 5, 10)))
        one.set_major_formatter(FuncFormatter(lambda value, _: format_figure(value)))


def share_legend(figure: Any, axes: Sequence[Any]) -> None:
    """Put one legend below all axes of a figure (layout "constrained"), a label once.

    Args:
      figure: matplotlib's Figure.
      axes: whose lines it names.
    """
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        inches = 0.6 + 0.085 * max(map(len, found))  # of an entry
        columns = min(len(found), max(1, int(figure.get_figwidth() / inches)))
        figure.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False)
