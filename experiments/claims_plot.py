"""A picture of an experiment's claims: what was measured, its interval, what was published, the verdict."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from jaxllm.report import Claim, format_figure

_COLOURS = {"holds": "tab:green", "fails": "tab:red", "undecided": "tab:gray"}
_WIDE = 62  # characters of a line of a claim


def draw_claims(claims: Sequence[Claim]) -> Any:
    """Return a matplotlib figure with a row a claim, each on a scale of its own.

    A row shows the claim (its bound stands in the text alone), the figure measured with its interval, a
    diamond for the published figure, and 0 as a line where it is near. Its colour is the verdict. Figures
    that are not finite are not drawn but written.
    """
    from matplotlib.figure import Figure

    lines = [textwrap.wrap(claim.claim, _WIDE) for claim in claims]
    heights = [0.17 * max(len(wrapped), 2) + 0.14 for wrapped in lines]
    figure = Figure(figsize=(10, sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(len(claims), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, claim, wrapped in zip(axes, claims, lines, strict=True):
        _row(axis, claim, "\n".join(wrapped))
    handles = [_mark(axes[0], "s", colour, verdict) for verdict, colour in _COLOURS.items()]
    handles.append(_mark(axes[0], "D", "black", "published", fillstyle="none"))
    handles.append(_mark(axes[0], "|", "black", "0", markersize=12))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _row(axis, claim: Claim, text: str) -> None:
    colour = _COLOURS[claim.verdict]
    axis.plot([claim.measured], [0], "s", color=colour, markersize=6)
    if claim.interval is not None:
        axis.plot(claim.interval, [0, 0], "-", color=colour, linewidth=2)
    if claim.paper is not None:
        axis.plot([claim.paper], [0], "D", color="black", fillstyle="none", markersize=6)
    figures = [claim.measured, *(claim.interval or ()), *([] if claim.paper is None else [claim.paper])]
    shown = list(filter(math.isfinite, figures)) or [0.0]
    low, high = min(shown), max(shown)
    if min(abs(low), abs(high)) < 2 * (high - low) or low <= 0 <= high:
        low, high = min(low, 0), max(high, 0)
        axis.axvline(0, color="black", linewidth=0.8)
    margin = 0.08 * (high - low) or abs(high) or 1
    axis.set(xlim=(low - margin, high + margin), ylim=(-1, 1), yticks=[0])
    axis.set_yticklabels([text], parse_math=False)
    axis.tick_params(axis="y", length=0, labelsize=8)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    axis.axhline(0, color="lightgray", linewidth=0.6, zorder=0)
    measured = format_figure(claim.measured, 3)
    if claim.interval is not None:
        measured += " ({} to {})".format(*(format_figure(end, 3) for end in claim.interval))
    axis.annotate(measured, (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=8, color=colour)


def _mark(axis, marker: str, colour: str, label: str, **options):
    return axis.plot([], [], marker, color=colour, label=label, **options)[0]
