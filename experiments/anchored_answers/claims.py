"""What the runs of `anchored_answers` come to: figures, claims with intervals, tables."""

import re
from collections.abc import Callable

import numpy as np

from jaxllm.report import Claim, decide, markdown_table, t_interval

_PAPER, _OURS = "Li and Gao 2024", "this experiment"
EDIT = "gold-free edit"
# How often GPT-2 answers A where another letter is right, by set (table of the paper, as read second-hand).
_PUBLISHED = {
    "gpt2": {"ioi": 0.455, "arc": 0.546, "commonsense": 0.348},
    "gpt2-medium": {"ioi": 0.974, "arc": 0.916, "commonsense": 0.815},
    "gpt2-large": {"ioi": 1.0, "arc": 0.976, "commonsense": 0.996},
    "gpt2-xl": {"ioi": 0.858, "arc": 0.699, "commonsense": 0.977},
}


def figures(runs: list[dict], read: Callable[[dict], np.ndarray]) -> np.ndarray:
    """Return a figure a run where there are several (seeds), else one a question or text of the only run.

    Args:
      read: a run -> array over questions or texts, NaN where one has no such figure.
    """
    found = [np.asarray(read(run), float) for run in runs]
    found = [values[~np.isnan(values)] for values in found]
    if len(found) == 1:
        return found[0]
    return np.array([values.mean() for values in found if len(values)])


def mean_of(runs: list[dict], read: Callable[[dict], np.ndarray]) -> tuple[float, tuple[float, float] | None]:
    """Return (the mean, its 95 % interval) of `figures`."""
    values = figures(runs, read)
    return (float(values.mean()) if len(values) else float("nan")), t_interval(values)


def kinds(runs: list[dict], within: str = "variants") -> list[str]:
    """Return the names of edits, numbered ones once."""
    return list(dict.fromkeys(re.sub(r" \d+$", "", name) for run in runs for name in run[within]))


def like(run: dict, start: str, figure: str, within: str = "variants") -> np.ndarray:
    """Return a figure of an edit; of several whose names begin so, their mean."""
    found = [values[figure] for name, values in run[within].items() if name.startswith(start)]
    return np.mean(found, axis=0) if found else np.array([np.nan])


def gain(over: str, figure: str = "accuracy") -> Callable[[dict], np.ndarray]:
    """Return what reads how much more the gold-free edit has of a figure than another variant."""
    return lambda run: like(run, EDIT, figure) - like(run, over, figure)


def judge(name: str, runs: list[dict]) -> list[Claim]:
    """Return the claims on one subject, the headline first."""
    claims = []

    def add(text, read, source=_OURS, paper=None, **bounds):
        mean, interval = mean_of(runs, read)
        if np.isfinite(mean):
            claims.append(
                Claim(f"{name}: {text}", source, measured=mean, interval=interval, paper=paper,
                      holds=decide(interval, **bounds))
            )  # fmt: skip

    add("the gold-free edit raises held-out accuracy, over all places of the right answer, by",
        gain("no edit"), above=0)  # fmt: skip
    add("the gold-free edit lowers the held-out anchored-bias rate by",
        lambda run: -gain("no edit", "anchored")(run), above=0)  # fmt: skip
    add("its accuracy is above that of the same vector in random rows of the layer, by", gain("random row"),
        above=0)  # fmt: skip
    add("... in random rows of random layers, by", gain("random layer"), above=0)
    add("... in other rows of the layer that are as often among its largest, by", gain("other active"),
        above=0)  # fmt: skip
    add("... above that of the letters' mean logits taken off the output, by", gain("output"), above=0)
    add("it costs at most 0.05 of the accuracy where the anchor is right",
        lambda run: -gain("no edit", "accuracy_on_anchor")(run), at_most=0.05)  # fmt: skip
    add("it raises the loss of plain text by at most 0.01 nats",
        lambda run: run["plain"][EDIT]["loss"] - run["plain"]["no edit"]["loss"], at_most=0.01)  # fmt: skip
    add("it raises the loss of the word A in plain text, the English article, by at most 0.1 nats",
        lambda run: run["plain"][EDIT]["article"] - run["plain"]["no edit"]["article"],
        at_most=0.1)  # fmt: skip
    oracle = lambda what: lambda run: run["oracle"][what]
    add("ORACLE: with each prompt's right letter put into the row, failing prompts are right",
        oracle("right letter put in"), _PAPER, paper=1.0, at_least=0.9)  # fmt: skip
    add("ORACLE: a wrong letter put in is said as often, within 0.1: the edit injects an answer",
        lambda run: run["oracle"]["right letter put in"] - run["oracle"]["wrong letter put in, and said"],
        at_most=0.1)  # fmt: skip
    add("ORACLE: the chosen row makes more prompts right than a random row of its layer, by",
        lambda run: run["oracle"]["right letter put in"] - run["oracle"]["right letter put in, random row"],
        _PAPER, above=0)  # fmt: skip
    for group, published in _PUBLISHED.get(name, {}).items():
        add(f"anchored-bias rate on {group}, whole vocabulary, is the published one within 0.1",
            lambda run: run["everything"]["anchored_full"][run["all_sets"] == group], _PAPER,  # noqa: B023
            paper=published, at_least=published - 0.1, at_most=published + 0.1)  # fmt: skip
    counts = sorted(set.intersection(*(set(run["swaps"]) for run in runs)))
    if counts:
        most = counts[-1]
        add(f"ORACLE: attention exchanged in the {most} most biased heads rights more prompts than in {most} "
            "random ones, by", lambda run: run["swaps"][most]["biased"] - run["swaps"][most]["random"],
            _PAPER, above=0)  # fmt: skip
    return claims


def summary(runs: list[dict]) -> dict[str, float]:
    """Return the named figures of one subject: means over its runs."""
    found = {}
    for within, prefix in (("variants", ""), ("plain", "plain_")):
        for kind in kinds(runs, within):
            for figure in runs[0][within]["no edit"]:
                read = lambda run: like(run, kind, figure, within)  # noqa: B023
                found[f"{prefix}{figure}/{kind}"] = mean_of(runs, read)[0]
    for what in runs[0]["oracle"]:
        found[f"oracle/{what}"] = mean_of(runs, lambda run: run["oracle"][what])[0]  # noqa: B023
    for count in runs[0]["swaps"]:
        for heads in ("biased", "random"):
            read = lambda run: run["swaps"].get(count, {}).get(heads, np.array([]))  # noqa: B023
            found[f"swap/{count} {heads} heads"] = mean_of(runs, read)[0]
    found["strength"] = float(np.mean([run["strength"] for run in runs]))
    found["gap_before"] = float(np.mean([run["gap"] for run in runs]))
    found["gap_after"] = float(np.mean([run["gap_left"] for run in runs]))
    return {name: value for name, value in found.items() if np.isfinite(value)}


def shown(runs: list[dict], read: Callable[[dict], np.ndarray]) -> str:
    """Return a mean and half of its interval as percentages."""
    mean, interval = mean_of(runs, read)
    if not np.isfinite(mean):
        return ""
    return f"{mean:.1%}" + ("" if interval is None else f" ± {interval[1] - mean:.1%}")


def edit_table(runs: list[dict]) -> str:
    """Return what every variant comes to on held-out questions."""
    columns = ("accuracy", "accuracy_on_anchor", "accuracy_on_others", "anchored", "anchored_full")
    rows = [
        (kind, *(shown(runs, lambda run: like(run, kind, column)) for column in columns))  # noqa: B023
        for kind in kinds(runs)
    ]
    head = ("held out", "accuracy", "where the anchor is right", "where another is", "anchored-bias rate",
            "the same, whole vocabulary")  # fmt: skip
    oracle = [(what, shown(runs, lambda run: run["oracle"][what])) for what in runs[0]["oracle"]]  # noqa: B023
    swaps = [
        (f"attention exchanged in {count} {heads} heads",
         shown(runs, lambda run: run["swaps"].get(count, {}).get(heads, np.array([]))))  # noqa: B023
        for count in runs[0]["swaps"] for heads in ("biased", "random")
    ]  # fmt: skip
    edits = ", ".join(
        f"layer {run['row'].layer} row {run['row'].row}, strength {run['strength']:.3g} (mean gap of "
        f"{run['anchor']} {run['gap']:.2f} to {run['gap_left']:.2f} logits)"
        for run in runs
    )
    return (
        f"Edited: {edits}. Letters alone, unless it says the whole vocabulary.\n\n"
        f"{markdown_table(head, rows)}\n\nEdits that know each prompt's answer, on failing prompts:\n\n"
        f"{markdown_table(('oracle', 'prompts that say it'), [*oracle, *swaps])}"
    )


def set_table(runs: list[dict]) -> str:
    """Return how biased the model is on each set of questions, before any edit, and each letter's share."""
    rows = []
    for name in dict.fromkeys(runs[0]["all_sets"]):
        read = lambda figure, name=name: lambda run: run["everything"][figure][run["all_sets"] == name]
        rows.append((name, *(shown(runs, read(f)) for f in ("accuracy", "anchored", "anchored_full"))))
    say = lambda run: " ".join(f"{a} {share:.1%}" for a, share in zip("ABCDE", run["share"], strict=True))
    shares = "; ".join(map(say, runs))
    head = ("set", "accuracy", "anchored-bias rate", "the same, whole vocabulary")
    return f"{markdown_table(head, rows)}\n\nLetters said: {shares}."


def row_table(runs: list[dict]) -> str:
    """Return the rows that a lens finds, and what each says; then the paper's scores of all rows."""
    rows = [
        (run["anchor"], one.layer, one.row, f"{one.score:.2f}", f"{own:.2f}", f"{one.share:.0%}", words)
        for run in runs
        for one, own, words in run["rows"]
    ]
    head = ("anchor", "layer", "row", "adds to the logit", "the paper's score", "in its layer's 10 largest",
            "says")  # fmt: skip
    scores = np.concatenate([run["maps"]["rows"].ravel() for run in runs])
    said = (
        f"The paper's scores of all rows: median {np.median(scores):.2f}, 99th percentile "
        f"{np.quantile(scores, 0.99):.2f}, largest {scores.max():.2f}; {np.mean(scores > 4):.2%} are above "
        "its threshold of 4."
    )
    return f"{markdown_table(head, rows)}\n\n{said}"
