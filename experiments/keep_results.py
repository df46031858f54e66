"""Keep what an experiment found; write the README's table of results and experiments/README.md from it.

    python -m experiments.keep_results --folders runs/mad --plot curves.png   # what an experiment wrote
    python -m experiments.keep_results                                        # the texts alone

experiments/results/NAME.json holds an experiment's claims, preset, seeds, seconds, machine and the commit
they were measured at; NAME.png is the one of its plots that shows them best or, where none was kept, one of
the claims themselves. The table has a row a kept experiment: its paper, first sentence and use ("On your own
model: ...") from the module's docstring, its headline (the first claim) and how many of its claims hold.
experiments/README.md has an entry for every experiment: what it asks, the RESULT of its docstring, how many
claims hold, the plot.
"""

import ast
import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.claims_plot import draw_claims
from jaxllm.atomic import write_figure, write_file
from jaxllm.cli.experiment import run_experiment
from jaxllm.errors import UserError
from jaxllm.report import Claim, format_figure, markdown_table, read_report

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
RESULTS = EXPERIMENTS / "results"
README, GUIDE = ROOT / "README.md", EXPERIMENTS / "README.md"
_USE = "On your own model"
_BEGIN, _END = "<!-- results: python -m experiments.keep_results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Config:
    folders: tuple[str, ...] = ()  # each holds a report.json
    plot: str = ""  # which of their plots is kept; empty: one that is there alone


def main(config: Config) -> None:
    """Keep the reports of the folders, then write the README's table and the guide's entries."""
    for folder in config.folders:
        print(keep(folder, config.plot))
    for path in RESULTS.glob("*.json"):
        if not path.with_suffix(".png").exists():
            write_figure(path.with_suffix(".png"), draw_claims(_claims(path)), dpi=80)
    _fill(README, table())
    _fill(GUIDE, entries())


def _fill(path: Path, results: str) -> None:
    """Replace what stands between a file's two lines."""
    before, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise UserError(f"{path} has no lines {_BEGIN!r} and {_END!r}: results go between them")
    write_file(path, f"{before}{_BEGIN}\n{results}\n{_END}{after}".encode())


def keep(folder: str | Path, plot: str = "") -> Path:
    """Write the claims of a folder's report, and a plot, to experiments/results; return the claims' path.

    Raises:
      UserError: the folder holds no report, or one without claims; it holds several plots and none is named,
        or not the one that is.
    """
    try:
        report = read_report(folder)
    except OSError as error:
        raise UserError(
            f"{folder} holds no report.json; give the --out of an experiment that ended"
        ) from error
    if not report.claims:
        raise UserError(f"the report in {folder} makes no claim; only experiments that test claims are kept")
    plots = {path.name: path for path in Path(folder).glob("*.png")}
    if (plot and plot not in plots) or (not plot and len(plots) > 1):
        raise UserError(f"plot is '{plot}', and {folder} holds {', '.join(sorted(plots)) or 'none'}; name "
                        "the one that shows the finding best")  # fmt: skip
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    kept = {
        "experiment": report.experiment, "preset": report.preset, "commit": head.stdout.strip(),
        "seeds": report.seeds, "seconds": round(report.seconds), "environment": report.environment,
        "claims": [asdict(claim) for claim in report.claims],
    }  # fmt: skip
    path = RESULTS / f"{report.experiment}.json"
    write_file(path, (json.dumps(kept, indent=1) + "\n").encode())
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)  # a plot of an earlier run does not stand beside the claims of this one
    if plots:
        write_file(picture, plots[plot or next(iter(plots))].read_bytes())
    return path


def table() -> str:
    """Return the table of what is kept, in the order of the experiments' names."""
    head = ("experiment, `python -m experiments.NAME`", "paper", "first finding", "claims that hold",
            "on your own model")  # fmt: skip
    return markdown_table(head, map(_row, sorted(RESULTS.glob("*.json"))))


def names() -> list[str]:
    """Return the names of the experiments, which are commands: files, and folders with a `__main__.py`."""
    commands = [*EXPERIMENTS.glob("*.py"), *EXPERIMENTS.glob("*/__main__.py")]
    run = [path for path in commands if "    run_experiment(" in path.read_text(encoding="utf-8")]
    found = {path.parent.name if path.stem == "__main__" else path.stem for path in run}
    return sorted(found - {"keep_results"})


def entries() -> str:
    """Return an entry for every experiment: what it asks, what was found, its command."""
    return "\n\n".join(map(_entry, names()))


def _entry(name: str) -> str:
    doc, kept = _doc(name), RESULTS / f"{name}.json"
    parts = [f"### {name}", f"{doc.splitlines()[0]}{f' arXiv {_paper(doc)}.' if _paper(doc) else ''}"]
    result = _paragraph(doc, "RESULT")
    if kept.exists():
        preset = json.loads(kept.read_text(encoding="utf-8"))["preset"]
        first, hold = _finding(kept)
        parts.append(f"{result or f'{first}.'} Claims that hold: {hold} (preset {preset}).")
    else:
        parts.append(result or "No run has been kept yet.")
    if kept.with_suffix(".png").exists():
        parts.append(f"![{name}](results/{name}.png)")
    use = _paragraph(doc, _USE)
    return "\n\n".join([*parts, f"`python -m experiments.{name}`{f'. {use}' if use else ''}"])


def _row(path: Path) -> tuple[str, ...]:
    doc = _doc(path.stem)
    use = _paragraph(doc, _USE).removeprefix(f"{_USE}: ").removesuffix(".")
    return f"`{path.stem}`: {doc.splitlines()[0]}", _paper(doc), *_finding(path), use


def _paragraph(doc: str, begins: str) -> str:
    """Return the paragraph that begins so, on one line; "" if there is none."""
    found = re.search(rf"^{begins}.*?(?=\n\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    return " ".join(found[0].split()) if found else ""


def _doc(name: str) -> str:
    path = EXPERIMENTS / f"{name}.py"
    path = path if path.exists() else EXPERIMENTS / name / "__init__.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def _paper(doc: str) -> str:
    number = re.search(r"arXiv (\d{4}\.\d{5})", doc)
    return f"[{number[1]}](https://arxiv.org/abs/{number[1]})" if number else ""


def _finding(path: Path) -> tuple[str, str]:
    """Return what the first of some kept claims says, and how many hold."""
    claims = _claims(path)
    first, verdicts = claims[0], [claim.verdict for claim in claims]
    interval = " ({} to {})".format(*map(_short, first.interval)) if first.interval else ""
    published = "" if first.paper is None else f", published {_short(first.paper)}"
    verdict = "**does not hold**" if first.verdict == "fails" else first.verdict
    undecided = f", {verdicts.count('undecided')} undecided" if "undecided" in verdicts else ""
    return (
        f"{first.claim}: {_short(first.measured)}{interval}{published}; {verdict}",
        f"{verdicts.count('holds')} of {len(claims)}{undecided}",
    )


def _claims(path: Path) -> list[Claim]:
    return [Claim(**claim) for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]]


def _short(value: float) -> str:
    return format_figure(value, digits=3)


if __name__ == "__main__":
    run_experiment(main, Config)
