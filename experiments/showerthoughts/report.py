"""What the study of short texts came to: measures, claims, tables, plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.showerthoughts.detectors import LENGTHS
from jaxllm.measures import (
    distinct_n,
    find_copies,
    flesch_reading_ease,
    loop_share,
    mark_share,
    mtld,
    opening_share,
    wilson_interval,
    words_of,
)
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table

_PAPER = "arXiv 2405.01660, abstract"
_TRADES = (
    ("distinct_2", "a lower temperature gives fewer distinct pairs of words", 1),
    ("detected", "a lower temperature is easier to detect", -1),
)
_RATED = (
    ("planted/covered", "simulated raters: the interval holds a planted difference of 0.3"),
    ("none/covers_zero", "simulated raters: where none is planted the interval holds 0"),
)
_COPIES_OF = 500  # texts that are searched for in what was read


def set_measures(
    texts: Sequence[str], read: Sequence[str] | None, genuine: Sequence[str] | None, budget: int
) -> dict[str, float]:
    """Return the measures of a set of texts.

    Args:
      texts: the set.
      read: what its generator read, to find copies in; None: unknown.
      genuine: texts whose lengths are compared; None: there are none.
      budget: words at which distinct n-grams are counted.
    """
    from scipy.stats import ks_2samp

    lengths = np.array([len(words_of(text)) for text in texts])
    found = {
        "texts": len(texts), "words": float(lengths.mean()), "words_sd": float(lengths.std()),
        **{f"distinct_{n}": distinct_n(texts, n, budget) for n in (1, 2, 3)}, "mtld": mtld(texts[:2000]),
        "flesch": flesch_reading_ease(texts), "openings": opening_share(texts), "loops": loop_share(texts),
        "questions": mark_share(texts), "repeated": 1 - len(set(texts)) / len(texts),
        "word_length": float(np.mean([len(w) for text in texts for w in words_of(text)])),
    }  # fmt: skip
    if genuine is not None:
        found["length_ks"] = float(ks_2samp(lengths, [len(words_of(text)) for text in genuine]).statistic)
    if read is not None:
        copied = find_copies(texts[:_COPIES_OF], read)
        found |= {f"copied_{n}": copied.copy_rate(n) for n in (5, 8)}
        found |= {"exact_copies": copied.exact_rate,
                  "longest_copy": int(copied.longest.max())}  # fmt: skip
    return found


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Return the figures by name."""
    style = found["style"]
    metrics = {f"style/{name}": style[name] for name in ("nats_before", "nats_after", "tag_ids")}
    metrics |= {f"style/ended/{name}": value for name, value in style["ended"].items() if np.isfinite(value)}
    metrics["budget_words"] = found["budget"]
    for name, one in found["sets"].items():
        metrics |= {f"{name}/{key}": value for key, value in one.items()}
    for kind, rows in found["matrix"].items():
        inside = [row[name]["accuracy"] for name, row in rows.items()]
        outside = [
            cell["accuracy"]
            for name, row in rows.items()
            for other, cell in row.items()
            if _apart(name, other)
        ]
        metrics[f"detector/{kind}/same_generator"] = float(np.mean(inside))
        if outside:
            metrics[f"detector/{kind}/other_generator"] = float(np.mean(outside))
    metrics |= {f"ratings/{name}": value for name, value in found["ratings"].items()}
    for train, row in found.get("released", {}).get("accuracy", {}).items():
        metrics |= {f"released/{train} on {test}": cell["accuracy"] for test, cell in row.items()}
    for pair, count in found.get("released", {}).get("overlaps", {}).items():
        metrics[f"released/overlap/{pair}"] = count
    for name, one in found.get("released", {}).get("sets", {}).items():
        metrics |= {f"released/{name}/{key}": value for key, value in one.items()}
    return metrics


def _apart(name: str, other: str) -> bool:
    """Whether two sets share no generator: neither is the mixture, nor another temperature of the other."""
    return "mixed" not in (name, other) and name.partition(",")[0] != other.partition(",")[0]


def judge(found: dict[str, Any]) -> list[Claim]:
    """Return the claims."""
    claims: list[Claim] = []
    for kind, rows in found["matrix"].items():
        if "normalized" in kind:
            continue
        inside, outside = _totals(rows, True), _totals(rows, False)
        interval = wilson_interval(*inside)
        said = f"{kind}: a detector tells texts of the generator that it was trained on in more than 0.6"
        measured = inside[0] / inside[1]
        claims.append(Claim(said, _PAPER, measured, decide(interval, above=0.6), interval=interval))
        if outside[1]:
            a, b = inside[0] / inside[1], outside[0] / outside[1]
            error = 1.96 * np.sqrt(a * (1 - a) / inside[1] + b * (1 - b) / outside[1])
            interval = (float(a - b - error), float(a - b + error))
            said = f"{kind}: on a generator that it was not trained on its accuracy is lower, by"
            holds = decide(interval, above=0)
            claims.append(Claim(said, "control: train x test", a - b, holds, interval=interval))
    grid = found["grid"]
    if len({cell["temperature"] for cell in grid}) > 1 and len(grid) > 3:
        for key, said, sign in _TRADES:
            rank, interval = _rank_with_heat(grid, key, sign)
            holds = decide(interval, above=0)
            claims.append(
                Claim(f"{said}: rank correlation over the grid", "control", rank, holds, interval=interval)
            )
    ratings = found["ratings"]
    for name, said in _RATED:
        interval, share = (
            wilson_interval(ratings[name], ratings["studies"]),
            ratings[name] / ratings["studies"],
        )
        holds = decide(interval, at_least=0.85)
        claims.append(
            Claim(f"{said} in at least 0.85 of studies", "control", share, holds, interval=interval)
        )
    return claims


def _rank_with_heat(grid: list[dict], key: str, sign: int) -> tuple[float, tuple[float, float]]:
    """Return (the rank correlation of a figure with the temperature, its interval by Fisher's z)."""
    from scipy.stats import spearmanr

    values = [cell[key] for cell in grid]
    if len(set(values)) == 1:  # nothing is known of their order
        return 0.0, (-1.0, 1.0)
    rank = sign * float(spearmanr([cell["temperature"] for cell in grid], values).statistic)
    middle, half = np.arctanh(np.clip(rank, -0.999, 0.999)), 1.96 / np.sqrt(len(grid) - 3)
    low, high = np.tanh([middle - half, middle + half])
    return rank, (float(low), float(high))


def _totals(rows: dict, same: bool) -> tuple[int, int]:
    """Return (right, all) of tests on the generator that a detector was trained on, or on others."""
    right = total = 0
    for name, row in rows.items():
        for other, cell in row.items():
            if (name == other and "mixed" not in name) if same else _apart(name, other):
                right += round(cell["accuracy"] * cell["n"])
                total += cell["n"]
    return right, total


def sections(found: dict[str, Any], tag: str, texts: dict[str, list[str]]) -> dict[str, str]:
    """Return the tables that a person reads."""
    keys = ("texts", "words", "distinct_1", "distinct_2", "distinct_3", "mtld", "flesch", "openings", "loops",
            "length_ks", "exact_copies", "copied_8")  # fmt: skip
    table = lambda sets: markdown_table(
        ("set", *keys),
        [(name, *(f"{one[k]:.4g}" if k in one else "" for k in keys)) for name, one in sets.items()],
    )
    made = {f"Measures at {found['budget']} words; a text follows {tag}": table(found["sets"])}
    for kind, rows in found["matrix"].items():
        cells = [(name, *(f"{c['accuracy']:.3f} ({c['low']:.2f} to {c['high']:.2f})" for c in row.values()))
                 for name, row in rows.items()]  # fmt: skip
        made[f"Accuracy, {kind}"] = markdown_table(("trained on \\ tested on", *rows), cells)
    rows = []
    for kind, each in found["matrix"].items():
        sums = np.sum([cell["by_length"] for row in each.values() for cell in row.values()], axis=0)
        rows.append((kind, *(f"{a / n:.3f} ({n})" if n else "" for a, n in sums)))
    made["Accuracy by words of a text"] = markdown_table(
        ("detector", *(f"{a} to {b}" for a, b in LENGTHS)), rows
    )
    if "released" in found:
        released = found["released"]
        made["Released sets"] = table(released["sets"])
        made["Released splits: texts of a test set in a training set"] = markdown_table(
            ("test in training", "texts"), released["overlaps"].items()
        )
        tests = list(next(iter(released["accuracy"].values())))
        made["Released splits: accuracy of the linear detector"] = markdown_table(
            ("trained on", *tests),
            [
                (train, *(f"{row[t]['accuracy']:.3f}" for t in tests))
                for train, row in released["accuracy"].items()
            ],
        )
    made["Texts"] = "\n".join(f"- {name}: {text}" for name, some in texts.items() for text in some[:3])
    return made


def plot(out: Path, found: dict[str, Any]) -> None:
    """Draw the matrices and the grid of sampling into a folder."""
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in found["matrix"] if "normalized" not in kind]
    figure, [axes] = pyplot.subplots(
        1, len(kinds), figsize=(3.4 * len(kinds) + 1, 4.0), layout="constrained", squeeze=False
    )
    for axis, kind in zip(axes, kinds, strict=True):
        rows = found["matrix"][kind]
        values = np.array([[cell["accuracy"] for cell in row.values()] for row in rows.values()])
        axis.imshow(values, vmin=0.4, vmax=1, cmap="viridis")
        for (i, j), value in np.ndenumerate(values):
            axis.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value < 0.8 else "black",
                fontsize=7,
            )
        axis.set_xticks(range(len(rows)), rows, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set(title=f"{kind} detector", xlabel="tested on", ylabel="trained on")
    figure.savefig(out / "detectors.png", dpi=130)
    pyplot.close(figure)
    shown = [("nats", "nats a token under the base"), ("distinct_2", "distinct pairs of words"),
             ("detected", "accuracy of a detector"), ("copied_8", "texts with 8 words copied")]  # fmt: skip
    shown = [one for one in shown if one[0] in found["grid"][0]]
    figure, [axes] = pyplot.subplots(
        1, len(shown), figsize=(3 * len(shown), 3.2), layout="constrained", squeeze=False
    )
    for axis, (key, said) in zip(axes, shown, strict=True):
        for top_p in sorted({cell["top_p"] for cell in found["grid"]}):
            cells = [cell for cell in found["grid"] if cell["top_p"] == top_p]
            axis.plot(
                [c["temperature"] for c in cells], [c[key] for c in cells], "o-", label=f"top-p {top_p:g}"
            )
        label_axes(axis, "temperature", said)
    share_legend(figure, axes)
    figure.savefig(out / "sampling.png", dpi=130)
    pyplot.close(figure)
