"""The report that every experiment writes: report.json for programs, report.md for people."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.atomic import write_file


@dataclass(frozen=True)
class Claim:
    """One statement put to the test. `holds` is computed by whoever measures, never typed in.

    Where there is an interval, let `decide` compare it with the claim's bound: an interval that crosses
    the bound leaves the claim undecided (None), neither holding nor failing.

    Examples:
      >>> gain = [0.11, 0.02, 0.08]  # over seeds: the control's loss minus ours
      >>> Claim("loss is below the control's, by", "table 2", measured=0.07, interval=t_interval(gain),
      ...       holds=decide(t_interval(gain), above=0)).verdict
      'undecided'
    """

    claim: str
    source: str  # where the claim is made
    measured: float
    holds: bool | None  # None: undecided
    paper: float | None = None  # the published figure
    interval: tuple[float, float] | None = None  # around `measured`

    @property
    def verdict(self) -> str:
        """"holds", "fails" or "undecided"."""
        return {True: "holds", False: "fails", None: "undecided"}[self.holds]


def decide(
    interval: tuple[float, float] | None,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> bool | None:
    """Say whether a figure known by its interval lies within the bounds: a `Claim`'s `holds`.

    True: all of the interval does. False: none of it does, or an end is NaN (a run diverged). None, which
    is undecided: the interval crosses a bound, or there is none (a single seed).

    Raises:
      ValueError: no bound is given, within which any figure would lie.

    Examples:
      >>> decide((1.0, 1.8), at_most=2)
      True
      >>> decide((2.5, 2.8), at_most=2)
      False
      >>> decide((1.5, 2.5), at_most=2) is decide(None, above=0) is None
      True
      >>> decide((0.97, 1.04), at_least=0.95, at_most=1.05)
      True
    """
    if (above, below, at_least, at_most) == (-math.inf, math.inf, -math.inf, math.inf):
        raise ValueError("decide was given no bound; give above, below, at_least or at_most")
    if interval is None:
        return None
    low, high = interval
    if all(above < end < below and at_least <= end <= at_most for end in interval):
        return True
    outside = high <= above or low >= below or high < at_least or low > at_most
    return False if outside or math.isnan(low) or math.isnan(high) else None


def format_figure(value: float, digits: int = 5) -> str:
    """Return a figure as a person writes it: some digits, and those before the point in full.

    Examples:
      >>> [format_figure(value) for value in (858880.0, 12_345.678, 3.14159265, 0.00002)]
      ['858,880', '12,346', '3.1416', '2e-05']
    """
    if 10 ** (digits - 1) <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}"


@dataclass(frozen=True)
class Report:
    """What an experiment found."""

    experiment: str
    preset: str
    config: dict[str, Any]
    seeds: list[int]
    metrics: dict[str, float]
    claims: list[Claim]
    seconds: float
    sections: dict[str, str] = field(default_factory=dict)  # title -> Markdown, for people only
    environment: dict[str, Any] = field(default_factory=lambda: environment())

    def write(self, folder) -> None:
        """Write report.json and report.md into a folder, each whole or not at all."""
        folder = Path(folder)
        values = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_file(folder / "report.json", values.encode())
        write_file(folder / "report.md", self.to_markdown(folder).encode())

    def to_text(self) -> str:
        """Return the figures and whether each claim holds, for a terminal."""
        width = max(map(len, self.metrics), default=0)
        lines = [f"{name:{width}}  {format_figure(value):>12}" for name, value in self.metrics.items()]
        for c in self.claims:
            interval = f" ({_interval(c)})" if c.interval else ""
            verdict = "FAILS" if c.verdict == "fails" else c.verdict
            lines.append(f"{verdict}: {c.claim}: {format_figure(c.measured)}{interval}")
        return "\n".join(lines)

    def to_markdown(self, folder) -> str:
        """Return the report as Markdown; shows the folder's plots."""
        env = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        lines = [f"# {self.experiment} ({self.preset})", "", f"{self.seconds:.0f} s; {env}", ""]
        if self.claims:
            rows = []
            for c in self.claims:
                published = "" if c.paper is None else format_figure(c.paper)
                holds = {True: "yes", False: "**no**", None: "undecided"}[c.holds]
                rows.append((c.claim, c.source, published, format_figure(c.measured), _interval(c), holds))
            head = ("claim", "source", "published", "measured", "interval", "holds")
            lines += [markdown_table(head, rows), ""]
        figures = ((name, format_figure(value)) for name, value in self.metrics.items())
        lines.append(markdown_table(("metric", "value"), figures))
        for plot in sorted(Path(folder).glob("*.png")):
            lines += ["", f"![{plot.stem}]({plot.name})"]
        for title, text in self.sections.items():
            lines += ["", f"## {title}", "", text]
        lines += ["", "## Config", "", "```json", json.dumps(self.config, indent=2), "```", ""]
        return "\n".join(lines)


def read_report(folder) -> Report:
    """Return the report in a folder."""
    values = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
    return Report(**(values | {"claims": [Claim(**claim) for claim in values["claims"]]}))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a Markdown table.

    Examples:
      >>> print(markdown_table(["model", "loss"], [["gpt2", 2.85]]))
      | model | loss |
      |---|---|
      | gpt2 | 2.85 |
    """
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t; None for a single value.

    Examples:
      >>> t_interval([1.0, 2.0, 3.0])
      (-0.48..., 4.48...)
    """
    from scipy.special import stdtrit

    values, n = np.asarray(values, np.float64), len(values)
    if n < 2:
        return None
    with np.errstate(invalid="ignore"):  # of values that are not finite there is none: NaN
        mean, half = values.mean(), stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n)
    return float(mean - half), float(mean + half)


def _interval(claim: Claim) -> str:
    return " to ".join(map(format_figure, claim.interval)) if claim.interval else ""


def environment() -> dict[str, Any]:
    """Return the versions and the machine that a figure depends on."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
