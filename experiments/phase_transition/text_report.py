"""Runs on real text and reading times: predictive power by checkpoint, claims, tables, plots."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from experiments.grid import code_digest, spread
from experiments.phase_transition import PAPER
from experiments.phase_transition.curves import copied, fall, shift, transition
from jaxllm import interpret
from jaxllm.atomic import write_figure
from jaxllm.kept_result import kept_result
from jaxllm.report import Claim, decide, markdown_table, t_interval

# name -> (number of the corpus, its column, whether the number of sub-words is among the controls)
MEASURES = {
    "Natural Stories": (0, "aligned", False),
    "Natural Stories, sub-words known": (0, "aligned", True),
    "Natural Stories, published column": (0, "published", False),
    "Provo, first fixation": (1, "first fixation", False),
    "Provo, go-past": (1, "go-past", False),
}
HEADLINE, KNOWN, PUBLISHED, *_PROVO = MEASURES
_WITHOUT = {  # arms in which copying cannot be learned
    "1 layer": "in one",
    "2 layers, no repeats": "where no window repeats itself",
    "2 layers, copying penalised": "where copying is penalised",
}
_SMALL = 1e-3  # nats a word: a change of predictive power that is none


def powers(config, arm: str, seed: int, run: dict, bits, corpora, counts) -> dict:
    """Return a run's predictive powers by measure: of checkpoints, of halves of the texts, without heads."""
    digest = hashlib.sha256(json.dumps([run["bits"], run["ablated"], run["pieces"]]).encode()).hexdigest()
    name = f"{arm}-{seed}.json".replace(", ", "-").replace(" ", "-")
    return kept_result(
        Path(config.out, "powers", name), functools.partial(_powers, run, bits, corpora, counts),
        bits=digest, code=code_digest("phase_transition/reading_corpora.py"),
    )  # fmt: skip


def _powers(run, bits, corpora, counts) -> dict:
    by_checkpoint, ablated = bits
    found: dict = {"ppp": {}, "halves": {}, "ablated": {}}
    for name, (number, column, known) in MEASURES.items():
        corpus = corpora[number]
        controls = corpus.controls(counts)
        if known:
            controls = np.column_stack([controls, run["pieces"][number]])
        halves = np.unique(corpus.texts, return_inverse=True)[1] % 2

        def power(values, corpus=corpus, column=column, controls=controls):
            return interpret.psychometric_power(
                corpus.times[column], values, controls, corpus.texts, lags=corpus.lags
            )

        each = [power(one[number]) for one in by_checkpoint]
        found["ppp"][name] = [one.delta_log_likelihood for one in each]
        found["halves"][name] = [
            [float(one.per_word[halves[one.rows] == half].mean()) for half in (0, 1)] for one in each
        ]
        whole = each[-1].delta_log_likelihood
        for kind, values in ablated.items():
            change = power(values[number]).delta_log_likelihood - whole
            found["ablated"].setdefault(kind, {})[name] = change
    return found


def _end(runs, arm: str, name: str) -> np.ndarray:
    return np.array([run[name][-1] for run in runs[arm]])


def _two_layers(runs) -> list[str]:
    return [arm for arm in ("2 layers", "2 layers, small batch") if arm in runs]


def _transitions(runs: list[dict]) -> np.ndarray:
    """Return the logarithm of the tokens at each run's transition."""
    return np.log([transition(run["copying"], run["tokens"]) for run in runs])


def claims(runs: dict[str, list[dict]], found: dict[str, list[dict]]) -> list[Claim]:
    """Return what the abstract says, tested over seeds and batches, and the controls."""
    results = []

    def test(text, values, source=PAPER, **bounds):
        if len(values) > 1:
            interval = t_interval(values)
            holds = decide(interval, **bounds)
            results.append(Claim(text, source, float(np.mean(values)), holds, interval=interval))

    two = _two_layers(runs)
    pairs = [(run, power) for arm in two for run, power in zip(runs[arm], found[arm], strict=True)]
    for name in MEASURES:
        test(f"PPP has a tipping point: at its peak, over the end, nats a word ({name})",
             [fall(power["halves"][name]) for _, power in pairs], above=0)  # fmt: skip
    rose = [(run, power) for run, power in pairs if copied(run)]
    for name in (HEADLINE, KNOWN):
        test(f"the tipping point is at the transition: log2 of tokens, one over the other ({name})",
             [shift(run, power["ppp"][name]) for run, power in rose], at_least=-1, at_most=1)  # fmt: skip
    if "2 layers, small batch" in runs and "2 layers" in runs:
        moved = [
            np.log2(transition(a["copying"], a["tokens"]) / transition(b["copying"], b["tokens"]))
            for a, b in zip(runs["2 layers"], runs["2 layers, small batch"], strict=True)
            if copied(a) and copied(b)
        ]
        test("a larger batch copies later: log2 of tokens at the transition, four times the batch",
             moved, source="arXiv 2511.16893", above=0)  # fmt: skip
    over_null = [run["copying"][-1] / run["null"][-1] for run, _ in pairs]
    test("2 layers: copying score of the best head at the end, over the null's", over_null,
         source="control", above=4)  # fmt: skip
    if (arm := "1 layer") in runs:
        test("one layer: copying score of the best head at the end, over the null's (no induction)",
             _end(runs, arm, "copying") / _end(runs, arm, "null"), source="control", below=4)  # fmt: skip
    for arm, why in _WITHOUT.items():
        if arm in runs and "2 layers" in runs:
            test(f"PPP falls more in 2 layers than {why}, nats a word",
                 [fall(a["halves"][HEADLINE]) - fall(b["halves"][HEADLINE])
                  for a, b in zip(found["2 layers"], found[arm], strict=True)],
                 source="control", above=0)  # fmt: skip
    if (arm := "2 layers, copying penalised") in runs:
        test("copying penalised: score of the best head at the end, over the null's",
             _end(runs, arm, "copying") / _end(runs, arm, "null"), source="control", below=2)  # fmt: skip
        if "2 layers" in runs:
            for name in (HEADLINE, KNOWN):
                test(f"without the transition PPP ends higher: penalised minus plain, nats a word ({name})",
                     [a["ppp"][name][-1] - b["ppp"][name][-1]
                      for a, b in zip(found[arm], found["2 layers"], strict=True)], above=0)  # fmt: skip
    for kind in ("all reacts", "patterns kept"):
        test(
            f"copying heads' patterns are not what lowers PPP: gain without the one that copies most, {kind}",
            [power["ablated"][f"most copying, {kind}"][HEADLINE] for _, power in pairs],
            below=_SMALL,
        )
    return results


def metrics(runs: dict[str, list[dict]], found: dict[str, list[dict]]) -> dict[str, float]:
    """Return means over seeds; and how peaks and transitions go together over runs."""
    values: dict[str, float] = {}
    for arm, some in runs.items():
        for name in ("copying", "previous", "repeat_loss", "loss", "in_context", "uas"):
            values[f"{arm}/{name}"] = float(np.mean(_end(runs, arm, name)))
        values[f"{arm}/null"] = some[0]["null"][-1]
        if all(map(copied, some)):
            values[f"{arm}/transition, tokens"] = float(np.exp(np.mean(_transitions(some))))
        values[f"{arm}/tokens a second"] = float(np.mean([run["tokens_per_second"] for run in some]))
        for name in MEASURES:
            curves = np.array([power["ppp"][name] for power in found[arm]])
            values[f"{arm}/{name}/largest ppp"] = float(curves.max(axis=1).mean())
            values[f"{arm}/{name}/ppp at the end"] = float(curves[:, -1].mean())
            peaks = [run["tokens"][int(c.argmax())] for run, c in zip(some, curves, strict=True)]
            values[f"{arm}/{name}/tokens at the peak"] = float(np.exp(np.mean(np.log(peaks))))
        for kind in found[arm][0]["ablated"]:
            changes = [power["ablated"][kind][HEADLINE] for power in found[arm]]
            values[f"{arm}/ppp change without the head of {kind}"] = float(np.mean(changes))
    pairs = [
        (transition(run["copying"], run["tokens"]), run["tokens"][int(np.argmax(power["ppp"][HEADLINE]))])
        for arm in _two_layers(runs) for run, power in zip(runs[arm], found[arm], strict=True) if copied(run)
    ]  # fmt: skip
    if len(pairs) > 2 and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
        ranks = [np.argsort(np.argsort(side)) for side in np.array(pairs).T]
        values["rank correlation of transition and peak, 2 layers"] = float(np.corrcoef(ranks)[0, 1])
    return values


def sections(runs: dict[str, list[dict]], found: dict[str, list[dict]]) -> dict[str, str]:
    """Return tables of the arms and of the powers, with intervals over seeds."""
    arms = [
        (arm, spread(_end(runs, arm, "copying")), spread(_end(runs, arm, "in_context")),
         spread(_end(runs, arm, "uas")), spread(_end(runs, arm, "loss")),
         spread(_transitions(some) / np.log(2)) if all(map(copied, some)) else "copying not learned")
        for arm, some in runs.items()
    ]  # fmt: skip
    rows = [
        (arm, name, spread([max(power["ppp"][name]) for power in some]),
         spread([power["ppp"][name][-1] for power in some]),
         spread([fall(power["halves"][name]) for power in some]))
        for arm, some in found.items() for name in MEASURES
    ]  # fmt: skip
    null = next(iter(runs.values()))[0]["null"][-1]
    first = {arm: float(np.mean([run["uas"][0] for run in some])) for arm, some in runs.items()}
    heads = ("arm", "copying, best head", "in-context learning, nats", "UAS", "held-out loss",
             "log2 tokens at the transition")  # fmt: skip
    return {
        "The runs": markdown_table(heads, arms)
        + f"\n\nThe null of copying is {null:.4f}; UAS at the first checkpoint, hardly trained: "
        + ", ".join(f"{arm} {share:.3f}" for arm, share in first.items())
        + ". ± is half of the 95 % interval over seeds.",
        "Predictive power, nats a word": markdown_table(
            ("arm", "times", "at its peak", "at the end", "fall, peak chosen on other texts"), rows
        ),
    }


def plot(runs: dict[str, list[dict]], found: dict[str, list[dict]], out: str) -> None:
    """Plot heads, in-context learning and PPP over the tokens seen: a thin line a seed, a thick mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    heads = {"copying": "copying, best head", "in_context": "in-context learning, nats", "uas": "UAS"}
    figure, axes = plt.subplots(2, 4, figsize=(17, 7.6), layout="constrained")
    for axis, name in zip(axes.flat, [*heads, *MEASURES], strict=True):
        for color, (arm, some) in zip(plt.cm.tab10.colors, runs.items(), strict=False):
            curves = [
                run[name] if name in heads else power["ppp"][name]
                for run, power in zip(some, found[arm], strict=True)
            ]
            for curve in curves:
                axis.plot(some[0]["tokens"], curve, color=color, lw=0.7, alpha=0.4)
            axis.plot(some[0]["tokens"], np.mean(curves, axis=0), color=color, lw=2, label=arm)
            if name not in heads and all(map(copied, some)):
                axis.axvline(np.exp(np.mean(_transitions(some))), color=color, lw=0.8, ls=":")
        axis.set(xscale="log", xlabel="tokens", title=heads.get(name, f"PPP: {name}"))
        axis.grid(alpha=0.2)
    axes[0, 0].axhline(next(iter(runs.values()))[0]["null"][-1], color="gray", lw=0.8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    write_figure(Path(out, "transition.png"), figure)
    plt.close(figure)
