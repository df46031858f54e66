"""Claims, tables and plots of predictive writing."""

from pathlib import Path

import numpy as np

from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table, t_interval

_PILOT = {1: 0.315, 3: 0.427}
_SPEC = "the pilot (7,193 facts, 3-gram and trie)"
_PAPER = "arXiv 2308.13576, abstract"
_SHOWN = ("saving_rate", "shown_per_character", "acceptance", "accepted_length", "p50_ms", "p95_ms")


def summary(config, found) -> dict[str, float]:
    """Return the figures of a report: means over splits, and each model's."""
    metrics = {}
    for corpus in config.corpora:
        cells = [one["arms"] for (name, _), one in found["counted"].items() if name == corpus]
        for arm in cells[0]:
            rates = [one[arm]["saving_rate"] for one in cells]
            metrics[f"{corpus}/{arm}/saving_rate"] = float(np.mean(rates))
    for name, cell in found["models"].items():
        metrics |= {f"{name}/{arm}/saving_rate": one["saving_rate"] for arm, one in cell["arms"].items()}
        metrics |= {f"{name}/cost/{key}": value for key, value in cell["cost"].items()}
        metrics |= {f"{name}/{key}": cell[key] for key in ("compile_seconds", "parameters", "nats_per_word")}
        gain = cell["arms"]["all/1"]["saving_rate"] - cell["arms"]["counts/1"]["saving_rate"]
        seconds = cell["cost"]["mean_ms"] / 1000
        metrics[f"{name}/more_keys_saved_per_second_of_model"] = gain / seconds if seconds else 0.0
    metrics |= {f"leaks/{name}": value for name, value in found["people"]["leaks"].items()}
    return metrics | {f"{name}/saving_rate": one["saving_rate"] for name, one in found["disturbed"].items()}


def judge(config, found) -> list[Claim]:
    """Return the claims, computed."""
    claims, first = [], config.corpora[0]
    cells = [found["counted"][first, seed] for seed in config.seeds]
    for shown in config.shown:
        rates = [one["arms"][f"trie+ngram/{shown}"]["saving_rate"] for one in cells]
        interval = t_interval(rates)
        if first == "facts" and shown in _PILOT:
            claims.append(Claim(
                f"n-grams and trie save more keys than the pilot's, {shown} shown: share saved", _SPEC,
                measured=float(np.mean(rates)), paper=_PILOT[shown], interval=interval,
                holds=decide(interval, above=_PILOT[shown]),
            ))  # fmt: skip
        gains = [
            rate - one["arms"][f"pilot/{shown}"]["saving_rate"]
            for rate, one in zip(rates, cells, strict=True)
        ]
        claim = f"n-grams and trie save more than the pilot's ranking of the same lines, {shown} shown, by"
        claims.append(_above(claim, _SPEC, gains))
    for name, cell in found["models"].items():
        lengths = np.array(cell["characters"])
        for shown in config.shown:
            arms = cell["arms"]
            saved = np.array(arms[f"all/{shown}"]["saved"]) - np.array(arms[f"counts/{shown}"]["saved"])
            claims.append(_above(
                f"{name} beside the counts saves more than they do, {shown} shown, share of keys a line",
                _PAPER,
                saved / lengths,
            ))  # fmt: skip
            alone = np.array(arms[f"all/{shown}"]["saved"]) - np.array(arms[f"model/{shown}"]["saved"])
            claims.append(_above(
                f"the counts beside {name} save more than it does, {shown} shown, share of keys a line",
                _PAPER,
                alone / lengths,
            ))  # fmt: skip
        errors = cell["calibration"].get("model")
        if errors:
            claims.append(Claim(
                f"an isotonic line from other lines lowers the calibration error of {name}, by",
                "specification, E", measured=errors["raw"] - errors["isotonic"],
                holds=errors["isotonic"] < errors["raw"],
            ))  # fmt: skip
    curves = {name: np.array(rows) for name, rows in found["people"]["curves"].items()}
    change = config.drift // config.block
    before = curves["personal"][:, :change] - curves["shared"][:, :change]
    late = before[:, change // 2 :].mean(axis=1)
    claims.append(_above(
        "a person's own words save more, in the second half of the notes before habits change, by",
        _PAPER, late,
    ))  # fmt: skip
    after = (curves["fading"] - curves["personal"])[:, change:].mean(axis=1)
    claims.append(_above("forgetting helps after a change of habit, by", "specification, B", after))
    leaked = found["people"]["leaks"]
    claims.append(Claim(
        "private strings suggested to others (to their owners they are: "
        f"{leaked['to_owners']} times)", "specification, pitfalls", measured=float(leaked["to_others"]),
        holds=leaked["to_others"] == 0 < leaked["to_owners"],
    ))  # fmt: skip
    return claims


def _above(claim: str, source: str, gains) -> Claim:
    interval = t_interval(list(gains))
    return Claim(
        claim, source, measured=float(np.mean(gains)), interval=interval, holds=decide(interval, above=0)
    )


def sections(config, found) -> dict[str, str]:
    """Return tables for people."""
    tables = {}
    cost = (
        "Tab takes a word and its space for one key, the right arrow all of it for one; the key that accepts "
        "is counted; choosing among three costs no more.\n\n"
    )
    for corpus in config.corpora:
        arms = found["counted"][corpus, config.seeds[0]]["arms"]
        tables[f"{corpus}: counts alone, split {config.seeds[0]}"] = cost + _table("sources/shown", arms)
    for name, cell in found["models"].items():
        tables[f"{name}: sources"] = cost + _table("sources/shown", cell["arms"])
        tables[f"{name}: thresholds (chosen: {cell['chosen_threshold']:.3f})"] = _table(
            "threshold", cell["thresholds"],
            (*_SHOWN[:3], *(f"net_value/{rho}" for rho in (0.0, 0.2, 0.5))),
        )  # fmt: skip
        late = "Longer answers are left out, but later keys find what they computed: an upper bound.\n\n"
        tables[f"{name}: budgets"] = late + _table("budget, ms", cell["budgets"])
        exact = cell["arms"]["all/1"]
        tables[f"{name}: ExactMatch@N of first suggestions that long"] = markdown_table(
            ["N", "share"], [[n, f"{exact[f'exact_match@{n}']:.3f}"] for n in range(1, 6)]
        )
        rows = [[s, f"{e['raw']:.3f}", f"{e['isotonic']:.3f}"] for s, e in cell["calibration"].items()]
        tables[f"{name}: calibration error"] = markdown_table(["source", "as given", "isotonic"], rows)
    tables["Typed otherwise"] = _table("lines", found["disturbed"])
    return tables


def _table(head: str, arms: dict[str, dict], columns=_SHOWN) -> str:
    rows = [[name, *(f"{one[column]:.3f}" for column in columns)] for name, one in arms.items()]
    return markdown_table([head, *columns], rows)


def draw_plots(config, found) -> None:
    """Draw curves of people, thresholds and budgets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    people, budgets, thresholds = figure.subplots(1, 3)
    for name, rows in found["people"]["curves"].items():
        rates = np.array(rows)
        notes = config.block * (1 + np.arange(rates.shape[1]))
        people.plot(notes, rates.mean(axis=0), label=f"{name} words" if name != "fading" else "own, fading")
    people.axvline(config.drift, color="gray", linestyle=":", label="habits change")
    label_axes(people, "notes written", "share of keys saved", f"{config.people} people", whole=True)
    for name, cell in found["models"].items():
        points = [(float(budget), one["saving_rate"]) for budget, one in cell["budgets"].items()]
        [line] = budgets.plot(*zip(*points, strict=True), marker="o", label=name)
        budgets.axhline(cell["arms"]["counts/1"]["saving_rate"], color=line.get_color(), linestyle=":")
        swept = (one for theta, one in cell["thresholds"].items() if theta != "chosen/1")
        points = [(one["saving_rate"], one["acceptance"]) for one in swept]
        thresholds.plot(*zip(*points, strict=True), marker="o", color=line.get_color())
    budgets.set_xscale("log")
    label_axes(budgets, "budget, ms (dotted: counts alone)", "share of keys saved", "answers in time")
    label_axes(thresholds, "share of keys saved", "accepted / shown", "thresholds")
    share_legend(figure, [people, budgets])
    write_figure(Path(config.out) / "writing.png", figure)
