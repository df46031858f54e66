"""Kept results are what the reports said, and the README's table is what is kept."""

import contextlib
import functools
import importlib
import io
import json
import re
import shlex

import pytest

from experiments import keep_results
from experiments.claims_plot import draw_claims
from jaxllm.cli import _COMMANDS as COMMANDS
from jaxllm.cli import _main as jaxllm
from jaxllm.cli.train import parse_config
from jaxllm.errors import UserError
from jaxllm.report import Claim, Report, decide


@pytest.mark.parametrize(
    "path, results",
    [
        (keep_results.README, keep_results.tables),
        (keep_results.GUIDE, keep_results.entries),
        (keep_results.BENCHMARKS, keep_results.benchmark_entries),
    ],
)
def test_the_readmes_show_what_is_kept(path, results):
    text = path.read_text(encoding="utf-8")
    assert f"{keep_results._BEGIN}\n{results()}\n{keep_results._END}" in text, (
        "run python -m experiments.keep_results"
    )


def test_an_experiment_that_is_not_kept_speaks_for_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(keep_results, "RESULTS", tmp_path)
    assert {"mad", "pretrain", "tart", "tart_train"} <= set(keep_results.names())
    entries = dict(entry.split("\n", 1) for entry in keep_results.entries().split("### ")[1:])
    assert "Claims: " not in entries["pretrain"] and "RESULT (" in entries["pretrain"]


def test_a_report_is_kept_with_its_claims_and_shown_by_its_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(keep_results, "RESULTS", tmp_path / "results")
    claims = [
        Claim("sinks vanish", "abstract", 0.07, False, 0.0, (0.05, 0.09)),
        Claim("it trains", "table 1", 3.0, True),
        Claim("it is faster", "table 1", 1.1, decide((0.9, 1.3), above=1), None, (0.9, 1.3)),
    ]
    Report("activation_outliers", "small", {}, [0, 1], {}, claims, 12.3, environment={}).write(
        tmp_path / "run"
    )
    kept = json.loads(keep_results.keep(tmp_path / "run").read_text())
    assert (
        kept["claims"][0]["interval"] == [0.05, 0.09] and kept["seeds"] == [0, 1] and len(kept["commit"]) >= 7
    )
    row = keep_results.tables().splitlines()[2]
    assert "[2410.17174](https://arxiv.org/abs/2410.17174) | **In part**: outliers go (kurtosis" in row
    assert "could be taken away. | 1 holds, 1 fails, 1 undecided | `jaxllm train" in row
    assert row.endswith("`jaxllm.interpret.activation_statistics` measures |")


def test_one_plot_is_kept_and_never_beside_the_claims_of_another_run(monkeypatch, tmp_path):
    monkeypatch.setattr(keep_results, "RESULTS", tmp_path / "results")
    claims = [Claim("it trains", "table 1", 3.0, True)]
    for folder, plots in (("two", ("a.png", "b.png")), ("one", ("c.png",)), ("none", ())):
        Report("mad", "small", {}, [0], {}, claims, 1.0, environment={}).write(tmp_path / folder)
        for name in plots:
            (tmp_path / folder / name).write_bytes(name.encode())
    kept = tmp_path / "results" / "mad.png"
    with pytest.raises(UserError, match="plot is '', and .*two holds a.png, b.png; name"):
        keep_results.keep(tmp_path / "two")
    with pytest.raises(UserError, match="plot is 'c.png', and .*none holds none"):
        keep_results.keep(tmp_path / "none", "c.png")
    keep_results.keep(tmp_path / "two", "b.png")
    assert kept.read_bytes() == b"b.png" and "\n![mad](results/mad.png)\n" in keep_results.entries()
    keep_results.keep(tmp_path / "one")
    assert kept.read_bytes() == b"c.png"
    keep_results.keep(tmp_path / "none")
    assert not kept.exists() and "![mad]" not in keep_results.entries()


def test_a_picture_of_claims_shows_each_figure_in_the_colour_of_its_verdict():
    claims = [
        Claim("it is near what was published", "table 1", 0.9, True, 0.93, (0.88, 0.92)),
        Claim("it gains, by", "abstract", -0.1, False, None, (-0.2, -0.01)),
        Claim("one seed decides nothing", "abstract", 2.0, None),
    ]
    figure = draw_claims(claims)
    for axis, claim, colour in zip(figure.axes, claims, ("green", "red", "gray"), strict=True):
        points = {line.get_marker(): line for line in axis.get_lines() if len(line.get_xdata())}
        assert list(points["s"].get_xdata()) == [claim.measured]
        assert points["s"].get_color() == f"tab:{colour}"
        ends = [tuple(line.get_xdata()) for line in axis.get_lines() if line.get_color() == f"tab:{colour}"]
        assert claim.interval is None or claim.interval in ends
        assert [label.get_text() for label in axis.get_yticklabels()] == [claim.claim]
        shown = [claim.measured, *(claim.interval or ()), claim.paper or claim.measured]
        low, high = axis.get_xlim()
        assert low < min(shown) <= max(shown) < high
    assert list(figure.axes[0].get_lines()[2].get_xdata()) == [0.93]
    assert figure.axes[1].texts[0].get_text() == "-0.1 (-0.2 to -0.01)"


def test_a_run_that_diverged_and_a_price_in_dollars_are_drawn(tmp_path):
    nan = float("nan")
    claims = [Claim("it costs $1 less, not $2", "x", nan, False, 2.0, (nan, float("inf")))]
    figure = draw_claims(claims)
    figure.savefig(tmp_path / "claims.png")
    assert figure.axes[0].get_xlim()[0] < 2 < figure.axes[0].get_xlim()[1]
    assert figure.axes[0].texts[0].get_text() == "nan (nan to inf)"
    assert not figure.axes[0].get_yticklabels()[0].get_parse_math()


def test_every_kept_result_has_a_picture():
    kept = list(keep_results.RESULTS.glob("*.json"))
    assert len(kept) >= 18
    assert all(path.with_suffix(".png").read_bytes().startswith(b"\x89PNG") for path in kept)


KEPT = sorted(path.stem for path in keep_results.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", KEPT)
def test_the_docstring_of_what_is_kept_opens_with_its_verdict_and_its_result(name):
    _, verdict, result, *_ = keep_results._doc(name).split("\n\n")
    assert verdict.startswith("VERDICT: ") and result.startswith("RESULT"), name


@pytest.mark.parametrize("name", KEPT)
def test_a_verdict_says_figures_of_kept_claims_and_what_became_of_those(name):
    """A figure is a number with a point: of a claim, its interval, its words or its paper, rounded."""
    claims = keep_results._claims(keep_results.RESULTS / f"{name}.json")
    answer, why = re.match(r"\*\*(.+?)\*\*(.*)", keep_results._verdict(keep_results._doc(name))).groups()
    cited = {figure: [claim for claim in claims if any(same(figure, one) for one in figures(claim))]
             for figure in re.findall(r"\d+\.\d+(?:e-?\d+)?", why)}  # fmt: skip
    assert all(cited.values()), {figure for figure, found in cited.items() if not found}
    verdicts = {claim.verdict for found in cited.values() for claim in found}
    needed = {"Yes": "holds", "No": "fails", "Undecided": "undecided", "In part": "holds"}
    assert needed[answer] in verdicts, (answer, verdicts)
    assert answer != "In part" or {claim.verdict for claim in claims} & {"fails", "undecided"}


def figures(claim):
    numbers = [claim.measured, claim.paper, *(claim.interval or ())]
    in_words = map(float, re.findall(r"\d+\.\d+", claim.claim))
    return [abs(number) for number in numbers if number is not None] + list(in_words)


def same(written, figure):
    """Say whether a figure is written so, to the digits that are written."""
    digits, _, power = written.partition("e")
    half = 0.5 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return abs(float(written) - figure) <= half * (1 + 1e-9)


def test_a_figure_of_a_verdict_that_no_claim_has_is_found():
    claim = Claim("it is below 0.25", "abstract", -0.1346, True, 0.5, (-0.2, -0.07))
    found = {written for written in ("0.13", "0.135", "0.14", "0.20", "0.25", "0.50", "0.5e1", "0.08")
             if any(same(written, one) for one in figures(claim))}  # fmt: skip
    assert found == {"0.13", "0.135", "0.20", "0.25", "0.50"}


def test_the_eighteen_systems_are_those_of_the_papers_cited():
    citation = (keep_results.ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", citation))
    papers = [keep_results._paper(keep_results._doc(name))[1:11] for name in KEPT
              if name not in keep_results.STUDIES]  # fmt: skip
    assert len(papers) == 18 and set(papers) == cited and set(keep_results.STUDIES) < set(KEPT)


USES = {name: keep_results._paragraph(keep_results._doc(name), keep_results._USE)
        for name in keep_results.names()}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(USES) - {"pretrain"}))
def test_what_an_experiment_says_to_use_exists(name):
    codes = re.findall(r"`([^`]+)`", USES[name])
    assert codes, f"the docstring of {name} has no sentence '{keep_results._USE}: ...'"
    for code in codes:
        if code.startswith(("python -m experiments.", "--", "tables=")):
            continue
        if code.startswith("jaxllm."):
            module, _, attribute = code.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), code
            continue
        program, command, *words = shlex.split(code)
        assert program == "jaxllm" and command in COMMANDS, code
        if command == "train":
            config = parse_config(words, prog="", description="")
            rounds = config.optim.name.endswith("bf16_sr")
            assert not rounds or config.precision == "bfloat16", f"{code} rounds no weight"
        assert command not in NEED_A_MODEL and "--lora.rank" not in words or "--start" in words, code
        shown = set(re.findall(r"--[\w.-]+", help_of(command)))
        assert {word for word in words if word.startswith("--")} <= shown, code


NEED_A_MODEL = ("train_labels", "train_punctuator")


@functools.cache
def help_of(command):
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        jaxllm([command, "--help"])
    return said.getvalue()


def test_what_is_not_a_report_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no report.json; give the --out"):
        keep_results.keep(tmp_path)
    Report("pretrain", "small", {}, [0], {}, [], 1.0, environment={}).write(tmp_path)
    with pytest.raises(UserError, match="makes no claim"):
        keep_results.keep(tmp_path)
