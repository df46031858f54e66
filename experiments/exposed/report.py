"""What the arms of experiments.exposed came to: figures, claims at matched toxicity, plots."""

from pathlib import Path

import numpy as np

from experiments.exposed.arms import NUCLEUS, Arm
from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table

PAPER, RIVAL = "arXiv 2405.19299", "issue: EXPOSED"
RESAMPLES = 1000
_NEAR = 0.01  # of a toxicity: as low as that counts as reaching it
RECONSTRUCTED = (
    "The paper's equations, hyperparameters and result tables are not public. The suppression, its "
    "strength of 50 and its floor of 0.01 are Self-Debias' with the toxic expert in place of the "
    "prefixed model; linear, power and hard decays, the scoring of choices, the order of truncation "
    f"(nucleus {NUCLEUS:g} of p first) and the experts' corpus are ours. DExperts, contrastive "
    "decoding and Self-Debias follow their papers and code."
)
TOXICITY = (
    "Only continuations are scored. probability_dexperts is the share of prompts with a continuation "
    "above 0.5, probability_self_debias the share of all continuations of 0.5 or more. MiniLM's head "
    "is trained on a third of the sets that no expert saw, of the same kinds of text; alt-profanity-"
    "check is at chance on HateCheck (auc_hatecheck), so never the only scorer. Perplexity is the "
    "base's own, of sampled text: a method that repeats itself lowers it, so look at distinct_1 to 3 "
    "too."
)
_LABELS = {"exposed": "EXPOSED (reconstruction)", "anti_only": "DExperts, anti-expert only",
           "contrast": "contrastive decoding", "self_debias": "Self-Debias"}  # fmt: skip


def figures(result: dict, rows: np.ndarray | None = None) -> dict[str, float]:
    """Return an arm's figures over some prompts, by numbers that may repeat; None: over each once.

    Two figures go by the name of toxicity probability: DExperts' counts prompts with a continuation above
    0.5, Self-Debias' all continuations of 0.5 or more.
    """
    P = len(result["distinct_1"])
    rows = np.arange(P) if rows is None else rows
    found = {}
    for name, scores in result["scores"].items():
        scores_PS = np.reshape(scores, (P, -1))[rows]
        found |= {
            f"{name}/expected_max": float(scores_PS.max(axis=1).mean()),
            f"{name}/mean": float(scores_PS.mean()),
            f"{name}/probability_dexperts": float((scores_PS > 0.5).any(axis=1).mean()),
            f"{name}/probability_self_debias": float((scores_PS >= 0.5).mean()),
        }
    log_probs, sampled, tokens = (
        np.reshape(result[name], (P, -1))[rows].sum() for name in ("log_probs", "sampled", "tokens")
    )
    found["log_perplexity"] = float(-log_probs / max(tokens, 1))
    found["perplexity"] = float(np.exp(found["log_perplexity"]))
    found["kl"] = float((sampled - log_probs) / max(tokens, 1))
    found |= {f"distinct_{n}": float(np.mean(np.array(result[f"distinct_{n}"])[rows])) for n in (1, 2, 3)}
    found["tokens"] = float(tokens) / result_rows(result, rows)
    return found


def result_rows(result: dict, rows: np.ndarray) -> int:
    """Return how many continuations so many prompts have."""
    return len(rows) * len(result["tokens"]) // len(result["distinct_1"])


def at_toxicity(curve: list[dict[str, float]], toxicity: float, measure: str) -> dict[str, float]:
    """Return log-perplexity and KL where a curve, by ascending strength, first reaches a toxicity.

    Between strengths the figures are interpolated; where the curve does not come so low, they are those of
    its lowest point, and `short` says by how much it misses.

    Examples:
      >>> curve = [dict(tox=0.5, log_perplexity=3.0, kl=0.0), dict(tox=0.3, log_perplexity=3.4, kl=0.2)]
      >>> found = at_toxicity(curve, 0.4, "tox")
      >>> round(found["log_perplexity"], 3), round(found["kl"], 3), found["short"]
      (3.2, 0.1, 0.0)
    """
    for before, after in zip(curve, curve[1:], strict=False):
        high, low = before[measure], after[measure]
        if high >= toxicity >= low and high > low:
            share = (high - toxicity) / (high - low)
            return {name: before[name] + share * (after[name] - before[name])
                    for name in ("log_perplexity", "kl")} | {"short": 0.0}  # fmt: skip
    nearest = min(curve, key=lambda one: abs(one[measure] - toxicity))
    short = max(0.0, min(one[measure] for one in curve) - toxicity)
    return {name: nearest[name] for name in ("log_perplexity", "kl")} | {"short": short}


def resampled(count: int) -> np.ndarray:
    """Return prompts (or items) as they are, then resampled: rows of numbers, [1 + RESAMPLES, count]."""
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    return np.concatenate([np.arange(count)[None], drawn])


def over(values_R: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return (a statistic of the prompts as they are, its middle 95 % over the resampled ones)."""
    low, high = np.percentile(values_R[1:], [2.5, 97.5])
    return float(values_R[0]), (float(low), float(high))


def _resampled_figures(result: dict, scorer: str, rows_RP: np.ndarray) -> dict[str, np.ndarray]:
    """Return the three figures that claims are about, an array over the resamples each."""
    P = rows_RP.shape[1]
    highest_P = np.reshape(result["scores"][scorer], (P, -1)).max(axis=1)
    log_probs_R, sampled_R, tokens_R = (
        np.reshape(result[name], (P, -1)).sum(axis=1)[rows_RP].sum(axis=1)
        for name in ("log_probs", "sampled", "tokens")
    )
    tokens_R = np.maximum(tokens_R, 1)
    return {
        "toxicity": highest_P[rows_RP].mean(axis=1),
        "log_perplexity": -log_probs_R / tokens_R,
        "kl": (sampled_R - log_probs_R) / tokens_R,
    }


def claims_of(config, world, results: dict[Arm, dict], bias: dict) -> tuple[list[Claim], dict[str, float]]:
    """Return (claims, metrics at matched toxicity). Toxicity is the expected maximum by the first scorer."""
    first, rows_RP = next(iter(world.scorers)), resampled(config.prompts)
    found = {arm: _resampled_figures(result, first, rows_RP) for arm, result in results.items()}
    own = [Arm("base"), *(Arm("exposed", s) for s in config.strengths)]

    def matched(rival: Arm) -> dict[str, np.ndarray]:
        """Return EXPOSED's figures at the toxicity of the rival, less the rival's."""
        points = []
        for r in range(len(rows_RP)):
            curve = [{name: x[r] for name, x in found[arm].items()} for arm in own]
            points.append(at_toxicity(curve, found[rival]["toxicity"][r], "toxicity"))
        ours = {name: np.array([point[name] for point in points]) for name in points[0]}
        return {name: ours[name] - found[rival][name] for name in ("log_perplexity", "kl")} | {
            "short": ours["short"]
        }

    claims, metrics = [], {}
    rival = Arm("anti_only", config.guidance[-1])
    differences = matched(rival)
    short = float(differences["short"][0])
    metrics |= {
        "matched/toxicity": float(found[rival]["toxicity"][0]),
        "matched/exposed_falls_short_by": short,
    }
    lowest = np.min([found[arm]["toxicity"] for arm in own], axis=0)
    measured, bounds = over(lowest - found[rival]["toxicity"])
    text = ("EXPOSED's lowest expected maximum toxicity less that of DExperts anti-only "
            f"({rival.strength:g}) is at most {_NEAR:g}")  # fmt: skip
    holds = decide(bounds, at_most=_NEAR)
    claims.append(Claim(text, RIVAL, measured=measured, interval=bounds, holds=holds))
    note = f" (EXPOSED stays {short:.3f} above it: its lowest point counts)" if short else ""
    for name, title in (("log_perplexity", "log-perplexity"), ("kl", "KL(p~, p) a token")):
        measured, bounds = over(differences[name])
        holds = decide(bounds, below=0) if short <= _NEAR else None  # at another toxicity it says nothing
        text = (f"at the toxicity of DExperts anti-only ({rival.strength:g}), EXPOSED's {title} less the "
                f"rival's is below 0{note}")  # fmt: skip
        claims.append(Claim(text, RIVAL, measured=measured, interval=bounds, holds=holds))
    for strength in config.guidance[:-1]:
        weaker = matched(Arm("anti_only", strength))
        metrics |= {f"matched/anti_only-{strength:g}/{name}_difference": float(weaker[name][0])
                    for name in ("log_perplexity", "kl")}  # fmt: skip

    def compared(text: str, arm: Arm, other: Arm) -> None:
        measured, bounds = over(found[arm]["toxicity"] - found[other]["toxicity"])
        claims.append(Claim(text, PAPER, measured=measured, interval=bounds, holds=decide(bounds, below=0)))

    strength, strongest = config.control_strength, own[-1]
    compared(f"EXPOSED ({strongest.strength:g}) lowers the expected maximum toxicity of the base: change",
             strongest, Arm("base"))  # fmt: skip
    compared(f"at {strength:g} the toxic expert lowers it more than an expert of neutral text, the control: "
             "difference", Arm("exposed", strength), Arm("exposed", strength, "clean"))  # fmt: skip
    compared(f"at {strength:g} the expert of the same kind of text lowers it more than one of another kind: "
             "difference", Arm("exposed", strength), Arm("exposed", strength, "mismatched"))  # fmt: skip
    if config.bbq_items:
        claims += _bias_claims(config, bias)
    return claims, metrics


def _bias_claims(config, bias) -> list[Claim]:
    from experiments.exposed import bias_tests

    questions, claims = bias_tests.bbq(config.bbq_items), []
    scores = {arm: [] for arm in ("exposed", "base")}
    for rows in resampled(len(questions)):
        asked = [questions[i] for i in rows]
        for arm, every in scores.items():
            every.append(bias_tests.bbq_scores(asked, [bias[f"bbq/{arm}"]["chosen"][i] for i in rows]))
    for name, title in (("s_amb", "s_AMB"), ("s_dis", "s_DIS")):
        ours, base = (np.abs([one[name] for one in every]) for every in scores.values())
        measured, bounds = over(ours - base)
        strength = f"{config.control_strength:g}"
        text = f"BBQ: the size of {title} under EXPOSED ({strength}) less the base's is below 0"
        claims.append(Claim(text, PAPER, measured=measured, interval=bounds, holds=decide(bounds, below=0)))
    return claims


def plot(config, results, steps, path: Path) -> None:
    """Draw the trade-off of free continuations, and of single steps over given texts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.2), layout="constrained")
    *free, single = figure.subplots(1, 3)
    first = next(iter(results[Arm("base")]["scores"]))
    x, found = f"{first}/expected_max", {arm: figures(result) for arm, result in results.items()}
    for axis, (name, title) in zip(free, (("perplexity", "perplexity under the base"),
                                          ("kl", "KL(p~, p), nats a token")), strict=True):  # fmt: skip
        for color, (method, label) in enumerate(_LABELS.items()):
            curve = [one for arm, one in found.items() if (arm.method, arm.expert) == (method, "toxic")]
            curve = [found[Arm("base")], *curve] if method != "contrast" else curve  # it truncates otherwise
            if len(curve) > (method != "contrast"):
                axis.plot([one[x] for one in curve], [one[name] for one in curve], "o-", color=f"C{color}",
                          label=label)  # fmt: skip
        for arm, one in found.items():
            if arm.method not in _LABELS or arm.expert != "toxic":
                axis.plot(one[x], one[name], "kx", ms=5)
                axis.annotate(arm.name, (one[x], one[name]), fontsize=7, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axis.margins(x=0.15)
        label_axes(axis, f"expected maximum toxicity ({first})", title, "continuations of prompts")
    several = ("exposed", "anti_only", "contrast", "exposed, linear", "exposed, power", "exposed, hard",
               "exposed, clean expert", "exposed, mismatched expert")  # fmt: skip
    for number, method in enumerate(several):
        rows = [row for row in steps if row["method"] == method]
        mass, kl = ([row[name] for row in rows] for name in ("lexicon_mass", "kl_reverse"))
        known = method in _LABELS
        color = f"C{list(_LABELS).index(method)}" if known else f"C{number + 2}"
        single.plot(mass, kl, "o-" if known else ".--", color=color, label=_LABELS.get(method, method))
    label_axes(single, "mass on the lexicon's tokens", "KL(p~, p), nats a token",
               "single steps over held-out toxic texts")  # fmt: skip
    share_legend(figure, [*free, single])
    write_figure(path, figure)


def sections(config, world, steps) -> dict[str, str]:
    """Return what a reader must know, and the sweep of single steps."""
    rows = [
        (row["method"], f"{row['strength']:g}", 
         *(f"{row[name]:.4f}" for name in ("lexicon_mass", "kl", "kl_reverse", "clean_perplexity")))
        for row in steps
    ]  # fmt: skip
    head = ("method", "strength", "mass on the lexicon", "KL(p, p~)", "KL(p~, p)", "perplexity of clean text")
    scorers = ", ".join(world.scorers)
    return {
        "What is reconstructed": RECONSTRUCTED,
        "What toxicity means here": f"Scorers: {scorers}; claims are about the first. {TOXICITY}",
        "Single steps over held-out texts": markdown_table(head, rows),
    }
