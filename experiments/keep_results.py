"""Keep what an experiment found; write the README's tables of results and the guides from it.

    python -m experiments.keep_results --folders runs/mad --plot curves.png   # what an experiment wrote
    python -m experiments.keep_results                                        # the texts alone

experiments/results/NAME.json holds an experiment's claims, preset, seeds, machine and the commit
they were measured at; NAME.png is the one of its plots that shows them best or, where none was kept, one of
the claims themselves. README has a row a kept experiment, the eighteen systems first: its paper, first
sentence, VERDICT and use ("On your own model: ...") from the module's docstring, and how many of its claims
hold. A figure in a verdict is one of the kept claims', which a test compares. experiments/README.md has an
entry for every experiment: what it asks, VERDICT and RESULT of its docstring, how many claims hold, the plot;
experiments/benchmarks/README.md one for every benchmark.
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
from jaxllm.report import Claim, markdown_table, read_report

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
RESULTS = EXPERIMENTS / "results"
README, GUIDE = ROOT / "README.md", EXPERIMENTS / "README.md"
BENCHMARKS = EXPERIMENTS / "benchmarks" / "README.md"
STUDIES = (  # what is kept beside the eighteen systems
    "attention_sinks", "cheaper_training", "composition", "long_range_arena", "mad", "phase_transition_text",
    "pretrained_sinks", "reading_times", "tart_train",
)  # fmt: skip
_USE = "On your own model"
_BEGIN, _END = "<!-- results: python -m experiments.keep_results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Config:
    folders: tuple[str, ...] = ()  # each holds a report.json
    plot: str = ""  # which of their plots is kept; empty: one that is there alone


def main(config: Config) -> None:
    """Keep the reports of the folders, then write the README's tables and the guides' entries."""
    for folder in config.folders:
        print(keep(folder, config.plot))
    for path in RESULTS.glob("*.json"):
        if not path.with_suffix(".png").exists():
            write_figure(path.with_suffix(".png"), draw_claims(_claims(path)), dpi=80)
    _fill(README, tables())
    _fill(GUIDE, entries())
    _fill(BENCHMARKS, benchmark_entries())


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
        "seeds": report.seeds, "seconds_of_last_session": round(report.seconds),
        "environment": report.environment,
        "claims": [asdict(claim) for claim in report.claims],
    }  # fmt: skip
    path = RESULTS / f"{report.experiment}.json"
    write_file(path, (json.dumps(kept, indent=1) + "\n").encode())
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)  # a plot of an earlier run does not stand beside the claims of this one
    if plots:
        write_file(picture, plots[plot or next(iter(plots))].read_bytes())
    return path


def tables() -> str:
    """Return the table of the systems and that of the studies beside them, in the order of their names."""
    kept = sorted(RESULTS.glob("*.json"))
    systems = [_row(path) for path in kept if path.stem not in STUDIES]
    studies = [_row(path) for path in kept if path.stem in STUDIES]
    head = ("does it work here?", "claims", "on your own model")
    both = [markdown_table((first, "paper", *head), rows)
            for first, rows in (("system", systems), ("study", studies)) if rows]  # fmt: skip
    return "\n\n".join(both)


def names() -> list[str]:
    """Return the names of the experiments, which are commands: files, and folders with a `__main__.py`."""
    found = _commands(*EXPERIMENTS.glob("*.py"), *EXPERIMENTS.glob("*/__main__.py"))
    named = {path.parent.name if path.stem == "__main__" else path.stem for path in found}
    return sorted(named - {"keep_results"})


def _commands(*paths: Path) -> list[Path]:
    """Return those of some files that are run as a command."""
    return [path for path in paths if "    run_experiment(" in path.read_text(encoding="utf-8")]


def entries() -> str:
    """Return an entry for every experiment: what it asks, what was found, its command."""
    return "\n\n".join(map(_entry, names()))


def _entry(name: str) -> str:
    doc, kept = _doc(name), RESULTS / f"{name}.json"
    parts = [f"### {name}", f"{doc.splitlines()[0]}{f' arXiv {_paper(doc)}.' if _paper(doc) else ''}"]
    result = _paragraph(doc, "RESULT") or "No run has been kept yet."
    if kept.exists():
        preset = json.loads(kept.read_text(encoding="utf-8"))["preset"]
        parts += [_verdict(doc), f"{result} Claims: {_holding(kept)} (preset {preset})."]
    else:
        parts.append(result)
    if kept.with_suffix(".png").exists():
        parts.append(f"![{name}](results/{name}.png)")
    use = _paragraph(doc, _USE)
    return "\n\n".join([*parts, f"`python -m experiments.{name}`{f'. {use}' if use else ''}"])


def benchmark_entries() -> str:
    """Return an entry for every benchmark: what it measures, what was measured, its command."""
    return "\n\n".join(map(_benchmark, _commands(*sorted(BENCHMARKS.parent.glob("*.py")))))


def _benchmark(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    result = _paragraph(doc, "RESULT") or "Its figures are printed, and none is kept here."
    run = f"`python -m experiments.benchmarks.{path.stem}`"
    return "\n\n".join([f"### {path.stem}", doc.splitlines()[0], result, run])


def _row(path: Path) -> tuple[str, ...]:
    doc = _doc(path.stem)
    use = _paragraph(doc, _USE).removeprefix(f"{_USE}: ").removesuffix(".")
    return f"`{path.stem}`: {doc.splitlines()[0]}", _paper(doc), _verdict(doc), _holding(path), use


def _verdict(doc: str) -> str:
    """Return what a docstring says after VERDICT, its answer in bold."""
    answer, mark, why = re.match(r"VERDICT: ([\w ]+)([,:])(.*)", _paragraph(doc, "VERDICT")).groups()
    return f"**{answer}**{mark}{why}"


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


def _holding(path: Path) -> str:
    """Return how many of some kept claims hold, fail and are undecided."""
    verdicts = [claim.verdict for claim in _claims(path)]
    held, failed, undecided = (verdicts.count(verdict) for verdict in ("holds", "fails", "undecided"))
    counts = {"hold" if held != 1 else "holds": held, "fail" if failed != 1 else "fails": failed}
    return ", ".join(f"{n} {word}" for word, n in (counts | {"undecided": undecided}).items() if n)


def _claims(path: Path) -> list[Claim]:
    return [Claim(**claim) for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]]


if __name__ == "__main__":
    run_experiment(main, Config)
