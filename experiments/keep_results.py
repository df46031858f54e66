"""Keep what an experiment found, and write the README's table of results from what is kept.

    python -m experiments.keep_results --folders runs/anchored_answers-small   # what an experiment wrote
    python -m experiments.keep_results                                         # the table alone

experiments/results/NAME.json holds an experiment's claims, preset, seeds, seconds, machine and the commit
they were measured at. The table has a row an experiment: its paper and first sentence from the module's
docstring, its headline (the first claim) and how many of its claims hold.
"""

import importlib
import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxllm.atomic import write_file
from jaxllm.cli.experiment import run_experiment
from jaxllm.errors import UserError
from jaxllm.report import Claim, format_figure, markdown_table, read_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
README = ROOT / "README.md"
_BEGIN, _END = "<!-- results: python -m experiments.keep_results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Config:
    folders: tuple[str, ...] = ()  # each holds a report.json


def main(config: Config) -> None:
    """Keep the reports of the folders, then write the README's table."""
    for folder in config.folders:
        print(keep(folder))
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise UserError(
            f"{README} has no lines {_BEGIN!r} and {_END!r}: the table of results goes between them"
        )
    write_file(README, f"{before}{_BEGIN}\n{table()}\n{_END}{after}".encode())


def keep(folder: str | Path) -> Path:
    """Write the claims of the report in a folder to experiments/results; return that file's path.

    Raises:
      UserError: the folder holds no report, or one without claims.
    """
    try:
        report = read_report(folder)
    except OSError as error:
        raise UserError(
            f"{folder} holds no report.json; give the --out of an experiment that ended"
        ) from error
    if not report.claims:
        raise UserError(f"the report in {folder} makes no claim; only experiments that test claims are kept")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    kept = {
        "experiment": report.experiment, "preset": report.preset, "commit": head.stdout.strip(),
        "seeds": report.seeds, "seconds": round(report.seconds), "environment": report.environment,
        "claims": [asdict(claim) for claim in report.claims],
    }  # fmt: skip
    path = RESULTS / f"{report.experiment}.json"
    write_file(path, (json.dumps(kept, indent=1) + "\n").encode())
    return path


def table() -> str:
    """Return the table of what is kept, in the order of the experiments' names."""
    head = ("experiment, `python -m experiments.NAME`", "paper", "first finding", "claims that hold")
    return markdown_table(head, map(_row, sorted(RESULTS.glob("*.json"))))


def _row(path: Path) -> tuple[str, str, str, str]:
    kept = json.loads(path.read_text(encoding="utf-8"))
    doc = importlib.import_module(f"experiments.{kept['experiment']}").__doc__
    number = re.search(r"arXiv (\d{4}\.\d{5})", doc)
    paper = f"[{number[1]}](https://arxiv.org/abs/{number[1]})" if number else ""
    claims = [Claim(**claim) for claim in kept["claims"]]
    first, verdicts = claims[0], [claim.verdict for claim in claims]
    interval = " ({} to {})".format(*map(_short, first.interval)) if first.interval else ""
    published = "" if first.paper is None else f", published {_short(first.paper)}"
    verdict = "**does not hold**" if first.verdict == "fails" else first.verdict
    finding = f"{first.claim}: {_short(first.measured)}{interval}{published}; {verdict}"
    undecided = f", {verdicts.count('undecided')} undecided" if "undecided" in verdicts else ""
    return (
        f"`{kept['experiment']}`: {doc.splitlines()[0]}",
        paper,
        finding,
        f"{verdicts.count('holds')} of {len(claims)}{undecided}",
    )


def _short(value: float) -> str:
    return format_figure(value, digits=3)


if __name__ == "__main__":
    run_experiment(main, Config)
