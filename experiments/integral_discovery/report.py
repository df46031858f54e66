"""Claims, plots and pages of integral discovery."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.grid import spread
from experiments.integral_discovery.corpus import closed_form
from experiments.integral_discovery.translation import ARCHITECTURES
from jaxllm.atomic import write_figure
from jaxllm.integrals import FAMILIES, Formula, Rules
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table, t_interval

PAPER, ISSUE, HERE = "arXiv 2402.18040", "issue: integral discovery", "the study's design"
WAYS = ("greedy", "verified")
Runs = dict[tuple[str, int], list[dict[str, Any]]]
_PAGE = ("3x^2-2x+1", "4exp(2x)", "-5sin(3x)", "x^4-6x+2cos(x)", "2x^6-x^5", "9exp(-4x)+x")


class Outcome(NamedTuple):
    """What the runs come to."""

    metrics: dict[str, float]
    claims: list[Claim]


def judge(config, metrics: dict[str, float], runs: Runs, book: dict[str, Any], problems: int) -> Outcome:
    """Return figures of the runs and the claims put to the test."""
    found = _figures(runs)
    most = max(config.pairs)
    claims = [_clean(metrics), _never_wrong(metrics), _measured_well(metrics)]
    claims += _against_rules(config, metrics, runs, most)
    exact = {name: _column(runs[name, most], "random/greedy/exact") for name in config.architectures}
    if set(exact) == set(ARCHITECTURES):
        decoder, other = (exact[name] for name in ARCHITECTURES)
        claims += [
            _above("new functions: the decoder, greedy, is exact more often than the encoder-decoder of as "
                   "many parameters, by", PAPER, decoder - other),
            _above("new functions: the decoder, greedy, is exact more often than regression, by", PAPER,
                   decoder - _clean(metrics).measured),
        ]  # fmt: skip
    for name in config.architectures:
        gain = _column(runs[name, most], "random/verified/exact") - exact[name]
        claims.append(_above(f"{name}: a verified beam is exact more often than greedy, by", HERE, gain))
    claims.append(Claim(
        "labels that regression finds are the symbolic ones, share (at 1 both train the same model)", HERE,
        metrics["labels/same"], bool(metrics["labels/same"] == 1),
    ))  # fmt: skip
    if problems:
        shares, more = _textbook(runs, book, problems, most, config)
        found |= shares
        claims += more
    return Outcome(found, claims)


def _figures(runs: Runs) -> dict[str, float]:
    found = {}
    for (name, count), several in runs.items():
        there = [one for one in several if one]
        for key in there[0]:
            if isinstance(there[0][key], float | int):
                values = _column(there, key)
                found[f"translation/{name}/{count} pairs/{key}"] = float(values.mean())
    return found


def _column(several, name: str) -> np.ndarray:
    return np.array([one[name] for one in several if one])


def _clean(metrics) -> Claim:
    least = min(metrics[f"regression/{family}/noise 0/found"] for family in FAMILIES)
    claim = "regression finds formulas of clean areas exactly, least share of a family"
    return Claim(claim, "pilot", least, bool(least >= 0.99), paper=1.0)


def _never_wrong(metrics) -> Claim:
    wrong = [v for k, v in metrics.items() if k.startswith("regression/") and k.endswith("/wrong")]
    claim = "regression reports a wrong formula: largest share of any family, noise, width and outside"
    return Claim(claim, ISSUE, max(wrong), bool(max(wrong) <= 0.01))


def _measured_well(metrics) -> Claim:
    worst = max(value for name, value in metrics.items() if name.startswith("areas/error/gauss/"))
    claim = "areas are those of closed forms, largest error"
    return Claim(claim, "pilot", worst, bool(worst <= 1e-9), paper=1e-9)


def _against_rules(config, metrics, runs: Runs, most: int) -> list[Claim]:
    """The headline: on degrees that nothing was trained on, found rules against the best of translation."""
    claims = []
    for split in ("degree 5", "degree 6", "coefficients"):
        for name in config.architectures:
            gap = metrics[f"rules/{split}/exact"] - _column(runs[name, most], f"{split}/verified/exact")
            claims.append(_above(
                f"{split} (none trained on): rules found up to degree 4 are exact more often than the {name} "
                "with a verified beam, by", PAPER if split != "coefficients" else HERE, gap,
            ))  # fmt: skip
    far = [v for name, v in metrics.items() if name.startswith("rules/degrees") and name.endswith("exact")]
    claims.append(Claim("rules hold on degrees 7 to 12 and rates never seen, share exact", PAPER, far[0],
                        bool(far[0] == 1)))  # fmt: skip
    return claims


def _textbook(runs: Runs, book, problems: int, most: int, config) -> tuple[dict[str, float], list[Claim]]:
    regressed = {int(n) for n in book["found"]}
    translated = [
        {int(n) for n in one["textbook"]["solved"]}
        for name in config.architectures
        for one in runs[name, most]
    ]
    either = [len(regressed | one) / problems for one in translated]
    asked = len(next(one["textbook"]["asked"] for one in runs[config.architectures[0], most]))
    shares = {
        "textbook/regression": len(regressed) / problems,
        "textbook/translation": float(np.mean([len(one) for one in translated])) / problems,
        "textbook/neither": 1 - float(np.mean(either)),
        "textbook/translation_can_be_asked": asked / problems,
        "textbook/found_but_not_the_book_s": sum(not right for right in book["right"].values()),
        "textbook/areas_off": book["area_off"], "textbook/unmeasured": book["unmeasured"],
        "textbook/sympy_yes": book["sympy_yes"], "textbook/sympy_no": book["sympy_no"],
        "textbook/sympy_time_outs": book["sympy_time_outs"],
    }  # fmt: skip
    agreed = np.mean([*book["right"].values()]) if book["right"] else np.nan
    more = len(regressed) / problems - np.array([len(one) / problems for one in translated])
    claim = "textbook problems: sums found by regression differ between points as the book's answer, share"
    return shares, [
        Claim(claim, ISSUE, float(agreed), bool(agreed >= 0.99)),
        _above("textbook problems: share solved by regression above translation's, by", HERE, more),
    ]


def _above(claim: str, source: str, gap: np.ndarray) -> Claim:
    """Return the claim that a gap, one a seed, is above 0."""
    interval = t_interval(gap)
    return Claim(claim, source, float(gap.mean()), decide(interval, above=0), interval=interval)


def sections(config, runs: Runs, rules: Rules, book: dict[str, Any], problems) -> dict[str, str]:
    """Return what a person reads: rules, shares by split, what models wrote, textbook sums."""
    rows = []
    for (name, count), several in runs.items():
        there = [one for one in several if one]
        for split in ("random", "coefficients", "degree 5", "degree 6"):
            cells = [
                _mean(there, f"{split}/{way}/{mark}") for way in WAYS for mark in ("exact", "within 0.01")
            ]
            rows.append((name, count, split, *cells))
    head = (
        "model",
        "pairs",
        "split",
        "greedy exact",
        "greedy within 1e-2",
        "verified exact",
        "verified within 1e-2",
    )
    first = runs[config.architectures[0], max(config.pairs)][0]
    wrote = [
        (split, f, text, str(closed_form(Formula.parse(f))))
        for split in ("random", "coefficients", "degree 5", "degree 6")
        for f, text in first[f"{split}/verified/samples"]
    ]
    found = {"Rules": f"```\n{rules}\n```", "Translation": markdown_table(head, rows)}
    found[f"What the {config.architectures[0]} wrote"] = markdown_table(("split", "f", "wrote", "is"), wrote)
    if problems:
        some = list(book["found"].items())[:12]
        rows = [(problems[int(n)]["f_sympy"], text, problems[int(n)]["F_sympy"]) for n, text in some]
        found["Textbook problems"] = markdown_table(
            ("f", "found", "the book"), [map(_code, row) for row in rows]
        )
    return found


def _mean(several, name: str) -> str:
    values = _column(several, name)
    return spread(values) if len(values) > 1 else f"{values[0]:.4f}"


def _code(text: str) -> str:
    return f"`{text}`"


def draw_plots(config, metrics: dict[str, float], runs: Runs, rules: Rules) -> None:
    """Draw noise.png, learning.png, degrees.png and page.png into the run's folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    out = Path(config.out)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for family in FAMILIES:
        shares = [metrics[f"regression/{family}/noise {noise:g}/found"] for noise in config.noises]
        axis.plot(range(len(shares)), shares, marker="o", label=family)
    title = "regression: found exactly; nearly all others are reported as not found"
    label_axes(axis, "noise on areas, beside their deviation", "share of formulas", title)
    axis.set_xticks(range(len(config.noises)), [f"{noise:g}" for noise in config.noises])
    axis.legend(frameon=False)
    write_figure(out / "noise.png", figure)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for (name, count), several in runs.items():
        for number, one in enumerate(one for one in several if one):
            steps, losses = zip(*one["curve"], strict=True)
            style = dict(color=f"C{list(runs).index((name, count))}", alpha=0.8)
            axis.plot(steps, losses, label=f"{name}, {count:,} pairs" if not number else None, **style)
    axis.set_yscale("log")
    label_axes(axis, "step", "held-out loss, nats a character", "learning curves", whole=True)
    share_legend(figure, [axis])
    write_figure(out / "learning.png", figure)
    _degrees(config, metrics, runs, out / "degrees.png")
    _page(config, rules, out / "page.png")


def _degrees(config, metrics, runs: Runs, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis, splits = figure.subplots(), ("random", "coefficients", "degree 5", "degree 6")
    rows = {"found rules": [metrics[f"rules/{split}/exact"] for split in splits]}
    for name in config.architectures:
        several = runs[name, max(config.pairs)]
        rows[name] = [float(_column(several, f"{split}/verified/exact").mean()) for split in splits]
    for number, (name, values) in enumerate(rows.items()):
        axis.bar(np.arange(len(splits)) + 0.25 * number, values, 0.23, label=name)
    label_axes(
        axis, "functions of the test (degrees up to 4 are trained on)", "share exact", "rules and translation"
    )
    axis.set_xticks(np.arange(len(splits)) + 0.25, splits)
    share_legend(figure, [axis])
    write_figure(path, figure)


def _page(config, rules: Rules, path: Path) -> None:
    """Draw functions, their areas, the formulas that regression finds and those of the rules."""
    from matplotlib.figure import Figure

    from experiments.integral_discovery.corpus import grid_of, measure, regressed

    functions = [Formula.parse(text) for text in _PAGE]
    x_M = grid_of(config.interval, config.points)
    area_NM = measure(functions, x_M)
    found = regressed(functions, x_M, config.most_power, config.rates)
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, f, area_M, one in zip(figure.subplots(2, 3).flat, functions, area_NM, found, strict=True):
        near = np.abs(x_M) <= 1.2
        axis.plot(x_M[near], f.values(x_M)[near], label="f")
        axis.plot(x_M[near], area_M[near], label="its area from 0")
        axis.fill_between(x_M, f.values(x_M), where=(x_M >= 0) & (x_M <= 0.8), alpha=0.2)
        by_rule = rules.area(f)
        title = f"f = {f}\nfound: {'nothing' if one is None else one}\nby the rules: {by_rule}"
        label_axes(axis, "x", "", title)
        axis.title.set_fontsize(9)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(str(rules), fontsize=9, family="monospace")
    write_figure(path, figure)
