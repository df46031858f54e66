"""What test-time training came to: claims with intervals over domains, tables beside the paper's, plots."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table

_PAPER = "arXiv 2305.18466"
# Bits per byte after 0, 1, 5, 10, 20, 50 neighbours, from the result files that the authors released.
PUBLISHED = {
    "GPT-2 small": (1.2079, 1.1487, 1.0872, 1.0573, 1.0249, 0.9922),
    "GPT-2 small, split": (1.2402, 1.1724, 1.1107, 1.0828, 1.0529, 1.0242),
    "GPT-2 large": (1.0724, 0.9843, 0.9171, 0.8914, 0.8669, 0.8537),
    "GPT-Neo 1.3B": (0.7385, 0.7351, 0.7248, 0.7181, 0.7117, 0.7103),
}
PUBLISHED_AT = (0, 1, 5, 10, 20, 50)
_RESAMPLES = 1000
_FEWEST = 6  # domains, or documents of one: the percentile bootstrap of fewer is far too narrow to decide
_KNOWN_TRAINING = ("small", "large", "stories")  # models whose training texts are known


class Estimate(NamedTuple):
    """A figure, its 95 % interval, and of how many units the smallest group was resampled."""

    measured: float
    interval: tuple[float, float]
    units: int

    def holds(self, **bounds: float) -> bool | None:
        """Say whether the figure lies within the bounds (`decide`); too few units decide nothing."""
        return decide(self.interval, **bounds) if self.units >= _FEWEST else None


def bits(found: dict, setting: str) -> np.ndarray:
    """Return bits [N, E] of every document."""
    return -np.array(found[setting]["log_probs"]) / math.log(2)


def estimate(read, *groups, seed: int = 0) -> Estimate:
    """Return read(all documents), with its interval over domains drawn again with replacement.

    Documents of a domain are alike, so a domain is drawn with all of its own; where a group is of one domain
    alone, its documents are drawn.

    Args:
      read: takes places of documents, of each group apart.
      groups: of each, the documents' domains [N].
      seed: of the draws.
    """
    draw, units = np.random.default_rng(seed), []
    for names_N in map(np.asarray, groups):
        each = [np.flatnonzero(names_N == name) for name in np.unique(names_N)]
        units.append(each if len(each) > 1 else list(np.arange(len(names_N))[:, None]))
    again = lambda each: np.concatenate([each[i] for i in draw.integers(0, len(each), len(each))])
    values = [read(*map(again, units)) for _ in range(_RESAMPLES)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = np.quantile(finite, (0.025, 0.975)) if finite else (math.nan, math.nan)
    everything = [np.arange(len(names_N)) for names_N in groups]
    return Estimate(float(read(*everything)), (float(low), float(high)), min(map(len, units)))


def per_byte(bits_N: np.ndarray, bytes_N: np.ndarray, rows) -> float:
    """Return bits per byte of some documents together."""
    size = bytes_N[rows].sum()
    return float(bits_N[rows].sum() / size) if size else math.nan


def ratio(found: dict, setting: str, at: int, rows) -> Estimate:
    """Return bits after `at` (a place in `after`) over those before, with its interval."""
    x_NE, rows = bits(found, setting), np.flatnonzero(rows)
    read = lambda some: x_NE[rows[some], at].sum() / x_NE[rows[some], 0].sum()
    return estimate(read, found["domains"][rows])


def difference(found: dict, first: str, second: str, at: int) -> Estimate:
    """Return by how many bits per byte the first setting is above the second, on the same documents."""
    x_N = bits(found, first)[:, at] - bits(found, second)[:, at]
    return estimate(lambda some: per_byte(x_N, found["bytes"], some), found["domains"])


def judge(results: dict[str, dict], after: dict[str, tuple[int, ...]], main: int) -> list[Claim]:
    """Return the claims that the results of subjects decide."""
    claims = []

    def add(text, source, value, paper=None, **bounds):
        claims.append(Claim(text, source, value.measured, value.holds(**bounds), paper, value.interval))

    for name, found in results.items():
        at, last = after[name].index(main) if main in after[name] else -1, len(after[name]) - 1
        k = after[name][at]
        seen, unseen = ~found["unseen"], found["unseen"]
        domains, (ours, others) = found["domains"], _said(name)
        for group, rows in ((ours, unseen), (others, seen)):
            if rows.sum() > 1:
                text = f"{name}: bits after {k} neighbours over bits before, {group}, below 1"
                add(text, _PAPER, ratio(found, "near", at, rows), below=1)
        if min(seen.sum(), unseen.sum()) > 1:
            x = bits(found, "near")
            s, u = np.flatnonzero(seen), np.flatnonzero(unseen)
            share = lambda rows: x[rows, at].sum() / x[rows, 0].sum()  # noqa: B023
            gap = estimate(lambda a, b: share(s[a]) - share(u[b]), domains[s], domains[u])  # noqa: B023
            text = f"{name}: relative gain on {ours} above that on {others}, by"
            add(text, _PAPER, gap, above=0)
        if last > at and after[name][last] > k:
            x = bits(found, "near")
            part = lambda some: (x[some, 0] - x[some, at]).sum() / (x[some, 0] - x[some, last]).sum()  # noqa: B023
            text = (
                f"{name}: {k} neighbours bring this share of the gain of {after[name][last]}, at least half"
            )
            add(text, _PAPER, estimate(part, domains), 0.848, at_least=0.5)
        for other, text in (
            ("far", "far-first above near-first"), ("random", "random documents above neighbours"),
            ("domain", "random documents of the same domain above neighbours"),
            ("shuffled", "random order above near-first"),
        ):  # fmt: skip
            if other in found:
                full = f"{name}: {text}, bits per byte after {k}, by"
                add(full, _PAPER, difference(found, other, "near", at), above=0)
        for other, text in (("informative", "neighbours that do not repeat each other"),
                            ("carried", "an optimizer carried over documents, as released")):  # fmt: skip
            if other in found:
                full = f"{name}: {text}: bits per byte above near-first with reset, after {k}, by"
                add(full, "spec: wishes" if other == "informative" else "spec: pitfalls",
                    difference(found, other, "near", at), above=0)  # fmt: skip
        if "split" in found:
            whole, halves = bits(found, "near"), bits(found, "split")
            apart = lambda some: (  # noqa: E731
                halves[some, at].sum() / halves[some, 0].sum() - whole[some, at].sum() / whole[some, 0].sum()  # noqa: B023
            )
            text = f"{name}: split evaluation's ratio above that of whole documents, by at most 0.02"
            add(text, _PAPER, estimate(apart, domains), 0.005, at_least=-0.02, at_most=0.02)
        if "one_pass" in found:
            x, y = bits(found, "near")[:, at], bits(found, "one_pass")[:, 0]
            value = lambda some: per_byte(y - x, found["bytes"], some)  # noqa: B023
            text = f"{name}: one pass over the index: bits per byte above {k} neighbours' each, by"
            add(text, "spec: break-even", estimate(value, domains), above=0)
    return claims


def _said(name: str) -> tuple[str, str]:
    """Return what is said of domains that models trained here did not read, and of the others.

    What any other model was pretrained on is not known: the first may well be among it.
    """
    known = name in _KNOWN_TRAINING
    return ("unseen domains", "seen domains") if known else ("domains held out here", "the others")


def narrowing(small: dict, large: dict, at: int) -> Claim:
    """Say which part of the distance to a larger model a small one covers by its neighbours."""
    x, y = bits(small, "near"), bits(large, "near")

    def value(some):
        apart = (x[some, 0] - y[some, 0]).sum()
        return (x[some, 0] - x[some, at]).sum() / apart if apart else math.nan

    part, published = estimate(value, small["domains"]), (1.2079 - 0.9922) / (1.2079 - 1.0724)
    text = "the small model after its neighbours covers this part of the distance to one 8 times its size"
    return Claim(text, _PAPER, part.measured, part.holds(above=0), published, part.interval)


def curve_table(results: dict[str, dict], after: dict[str, tuple[int, ...]]) -> str:
    """Return bits per byte after each number of neighbours, the published curves below."""
    columns = sorted({k for some in after.values() for k in some} | set(PUBLISHED_AT))
    rows = []
    for name, found in results.items():
        for group, said in zip((True, False), _said(name), strict=True):
            chosen = np.flatnonzero(found["unseen"] == group)
            if len(chosen):
                values = dict.fromkeys(columns, "")
                for place, k in enumerate(after[name]):
                    x = bits(found, "near")[:, place]
                    read = lambda some: per_byte(x, found["bytes"], chosen[some])  # noqa: B023
                    mean, (low, high), _ = estimate(read, found["domains"][chosen])
                    values[k] = f"{mean:.3f} ({low:.2f} to {high:.2f})"
                rows.append((f"{name}, {said}", str(len(chosen)), *values.values()))
    for name, values in PUBLISHED.items():
        known = dict(zip(PUBLISHED_AT, values, strict=True))
        rows.append((f"published: {name}", "", *(f"{known[k]:.4f}" if k in known else "" for k in columns)))
    return markdown_table(("model", "documents", *(f"k={k}" for k in columns)), rows)


def domain_table(found: dict, after: tuple[int, ...]) -> str:
    """Return bits per byte of each domain after each number of neighbours."""
    rows, x = [], bits(found, "near")
    for name in dict.fromkeys(found["domains"]):
        mine = found["domains"] == name
        values = (f"{per_byte(x[:, place], found['bytes'], mine):.3f}" for place in range(len(after)))
        rows.append((name, "held out here" if found["unseen"][mine][0] else "", *values))
    return markdown_table(("domain", "", *(f"k={k}" for k in after)), rows)


def setting_table(found: dict, after: tuple[int, ...]) -> str:
    """Return what each setting came to, over the documents it was measured on."""
    rows = []
    for setting, one in found.items():
        if isinstance(one, dict) and "log_probs" in one:
            size = found["split_bytes" if setting in ("split", "dynamic") else "bytes"]
            x = bits(found, setting)
            names = (
                [f"k={k}" for k in after] if x.shape[1] == len(after) else ["before", "after"][-x.shape[1] :]
            )
            each = (f"{n} {per_byte(x[:, i], size, slice(None)):.3f}" for i, n in enumerate(names))
            rows.append((setting, ", ".join(each)))
    return markdown_table(("setting", "bits per byte"), rows)


def plot(out: Path, results: dict[str, dict], after: dict[str, tuple[int, ...]]) -> None:
    """Write curves.png: each model's gain, seen and unseen apart; and orders and controls of the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, found) in enumerate(results.items()):
        for group, said, style in zip((True, False), _said(name), ("--", "-"), strict=True):
            rows = found["unseen"] == group
            if rows.any():
                x = bits(found, "near")[rows]
                label = f"{name}, {said}"
                left.plot(
                    after[name], x.sum(0) / x[:, 0].sum(), style, color=f"C{number}", marker=".", label=label
                )
    for name, style in (("GPT-2 small", ":"), ("GPT-Neo 1.3B", "-.")):
        values = np.array(PUBLISHED[name])
        left.plot(PUBLISHED_AT, values / values[0], style, color="0.5", label=f"published: {name}")
    label_axes(left, "neighbours", "bits over bits before", "gain", whole=True)
    name, found = next(iter(results.items()))
    orders = ("near", "shuffled", "far", "informative", "domain", "random", "carried")
    for setting in (one for one in orders if one in found):
        x = bits(found, setting)
        kept = [place for place, k in enumerate(after[name]) if k <= 20]
        right.plot(
            [after[name][i] for i in kept],
            [x[:, i].sum() / x[:, 0].sum() for i in kept],
            marker=".",
            label=setting,
        )
    label_axes(right, "neighbours", "bits over bits before", f"{name}: orders and controls", whole=True)
    share_legend(figure, [left, right])
    write_figure(out / "curves.png", figure)
