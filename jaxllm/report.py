"""The report that every experiment writes: report.json for programs, report.md for people."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

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

    def to_markdown(self, folder) -> str:
        """Return the report as Markdown; shows the folder's plots."""
        env = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        lines = [f"# {self.experiment} ({self.preset})", "", f"{self.seconds:.0f} s; {env}", ""]
        if self.claims:
            lines += ["| claim | source | published | measured | interval | holds |"]
            lines += ["|---|---|---|---|---|---|"]
            for c in self.claims:
                published = "" if c.paper is None else f"{c.paper:.4g}"
                interval = "" if c.interval is None else f"{c.interval[0]:.4g} to {c.interval[1]:.4g}"
                holds = "yes" if c.holds else "**no**"
                cells = (c.claim, c.source, published, f"{c.measured:.4g}", interval, holds)
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:,.5g} |" for name, value in self.metrics.items()]
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
