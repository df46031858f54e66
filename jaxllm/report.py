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
    """One statement put to the test. `holds` is computed by whoever measures, never typed in."""

    claim: str
    source: str  # where the claim is made
    measured: float
    holds: bool
    paper: float | None = None  # the published figure
    interval: tuple[float, float] | None = None  # around `measured`


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
        lines = [f"{name:{width}}  {value:>12,.5g}" for name, value in self.metrics.items()]
        for c in self.claims:
            interval = "" if c.interval is None else f" ({c.interval[0]:.4g} to {c.interval[1]:.4g})"
            lines.append(f"{'holds' if c.holds else 'FAILS'}: {c.claim}: {c.measured:.4g}{interval}")
        return "\n".join(lines)

    def to_markdown(self, folder) -> str:
        """Return the report as Markdown; shows the folder's plots."""
        env = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        lines = [f"# {self.experiment} ({self.preset})", "", f"{self.seconds:.0f} s; {env}", ""]
        if self.claims:
            rows = []
            for c in self.claims:
                published = "" if c.paper is None else f"{c.paper:.4g}"
                interval = "" if c.interval is None else f"{c.interval[0]:.4g} to {c.interval[1]:.4g}"
                holds = "yes" if c.holds else "**no**"
                rows.append((c.claim, c.source, published, f"{c.measured:.4g}", interval, holds))
            head = ("claim", "source", "published", "measured", "interval", "holds")
            lines += [markdown_table(head, rows), ""]
        figures = ((name, f"{value:,.5g}") for name, value in self.metrics.items())
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

    n = len(values)
    if n < 2:
        return None
    with np.errstate(invalid="ignore"):  # of values that are not finite there is none: NaN
        mean, half = np.mean(values), stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)
    return float(mean - half), float(mean + half)


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
