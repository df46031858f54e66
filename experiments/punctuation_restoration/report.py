"""What the study of punctuation found: counts by block, F1, intervals, claims, plots."""

from pathlib import Path

import numpy as np

from experiments.grid import mean_interval
from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table

PAPER, SPEC = "arXiv 2307.12949, abstract", "issue: punctuation"
ROWS = {
    "written": "1 written only",
    "augmented": "2 + generic augmentation",
    "topic": "3 + in-topic text",
    "generated": "4 + generated, filtered",
    "best_of_n": "4b + best of n, same reward and budget",
    "random": "5b + RL, random reward",
    "rl": "5 + RL",
    "upper": "6 in-domain labelled",
    "scratch": "3 from scratch",
}
_CLASSES = ("COMMA", "PERIOD", "QUESTION")


def count_blocks(gold: list[int], said: list[int], block: int) -> list[list[list[int]]]:
    """Return counts (right, said, there are) of each class in each block of words: [blocks][3][3].

    Examples:
      >>> count_blocks([0, 1, 2, 0], [1, 1, 0, 0], block=2)[0][0]
      [1, 2, 1]
    """
    gold_N, said_N = np.asarray(gold), np.asarray(said)
    found = []
    for begin in range(0, len(gold_N), block):
        own, other = gold_N[begin : begin + block], said_N[begin : begin + block]
        found.append([
            [int(((own == c) & (other == c)).sum()), int((other == c).sum()), int((own == c).sum())]
            for c in (1, 2, 3)
        ])  # fmt: skip
    return found


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Return 2 TP / (said + there are) over the three marks, O left out, of counts [..., 3, 3]."""
    right, said, own = np.moveaxis(np.asarray(counts, np.float64).sum(axis=-2), -1, 0)
    return 2 * right / np.maximum(said + own, 1)


def bootstrap_gain(
    first: np.ndarray, second: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return (gain in micro-F1, its 95 % interval), paired over blocks; seeds are drawn anew too.

    Args:
      first, second: counts [S, N, 3, 3], the same seeds and blocks.
      draws: of the bootstrap.
      seed: of the draws.
    """
    draw, (S, N) = np.random.default_rng(seed), first.shape[:2]
    gain = float(np.mean(micro_f1(first.sum(axis=1)) - micro_f1(second.sum(axis=1))))
    found = []
    for _ in range(draws):
        blocks = draw.integers(N, size=N)
        seeds = draw.integers(S, size=S) if S > 1 else [0]
        one, two = (x[seeds][:, blocks].sum(axis=1) for x in (first, second))
        found.append(np.mean(micro_f1(one) - micro_f1(two)))
    low, high = np.percentile(found, [2.5, 97.5])
    return gain, (float(low), float(high))


def stacked(cells: dict, row: str, test: str, seeds) -> np.ndarray | None:
    """Return counts [S, N, 3, 3] of a row; None where it was not run."""
    if any((row, seed) not in cells for seed in seeds):
        return None
    return np.array([cells[row, seed]["tests"][test] for seed in seeds])


def judge(config, cells: dict, extra: dict) -> tuple[dict[str, float], list[Claim]]:
    """Return figures and claims.

    Args:
      config: the run's.
      cells: (row, seed) -> {"tests": {test: counts by block}, "dev": micro-F1, ...}.
      extra: "ablation", "amount", "context", "health" of the study.
    """
    metrics: dict[str, float] = {}
    tests = list(next(iter(cells.values()))["tests"])
    for row in ROWS:
        for test in tests:
            counts = stacked(cells, row, test, config.seeds)
            if counts is None:
                continue
            metrics[f"micro_f1/{test}/{row}"] = float(micro_f1(counts.sum(axis=1)).mean())
            if test in ("reference", "asr"):
                for number, name in enumerate(_CLASSES):
                    one = counts.sum(axis=1)[:, number : number + 1]
                    metrics[f"f1/{test}/{row}/{name.lower()}"] = float(micro_f1(one).mean())
    some = next(iter(cells.values()))["tests"]
    for test in tests:
        for number, name in enumerate(_CLASSES):
            metrics[f"count/{test}/{name.lower()}"] = float(np.array(some[test])[:, number, 2].sum())
    claims = []
    for first, second, source in (
        ("rl", "generated", PAPER), ("generated", "topic", PAPER), ("rl", "topic", PAPER),
        ("rl", "best_of_n", SPEC), ("rl", "random", SPEC), ("topic", "augmented", SPEC),
        ("augmented", "written", SPEC), ("upper", "rl", SPEC), ("topic", "scratch", SPEC),
    ):  # fmt: skip
        one, two = (stacked(cells, row, "asr", config.seeds) for row in (first, second))
        if one is None or two is None:
            continue
        gain, interval = bootstrap_gain(one, two)
        claims.append(
            Claim(f"ASR test: micro-F1 of ({ROWS[first]}) above ({ROWS[second]}), by", source, gain,
                  holds=decide(interval, above=0), interval=interval)
        )  # fmt: skip
    if extra["health"]:
        health = extra["health"].values()
        metrics["rl/kl_last"] = float(np.mean([one["kl"][-1] for one in health]))
        for name in ("utility", "domain", "soundness"):
            few = max(1, len(next(iter(health))[name]) // 5)
            rise = [float(np.mean(one[name][-few:]) - np.mean(one[name][:few])) for one in health]
            mean, interval = mean_interval(rise)
            claims.append(
                Claim(f"RL: {name} rises from the first fifth of draws to the last, by", SPEC, mean,
                      holds=decide(interval, above=0), interval=interval)
            )  # fmt: skip
    for name, one in extra["ablation"].items():
        for figure in ("dev", "words", "distinct_2", "kl", "marks"):
            metrics[f"ablation/{name}/{figure}"] = one[figure]
    for words, one in extra["amount"].items():
        metrics[f"amount/{words}/dev"] = one
    for ahead, one in extra["context"].items():
        metrics[f"right_context/{ahead}/micro_f1"] = one
    return metrics, claims


def sections(config, cells: dict, extra: dict) -> dict[str, str]:
    """Return tables."""
    tests = list(next(iter(cells.values()))["tests"])
    rows = []
    for row, said in ROWS.items():
        found = [stacked(cells, row, test, config.seeds) for test in tests]
        if found[0] is not None:
            f1 = [micro_f1(one.sum(axis=1)) for one in found]
            rows.append((said, *(f"{one.mean():.3f} ({one.min():.3f} to {one.max():.3f})" for one in f1)))
    head = ("row", *tests)
    titles = {"Micro-F1 over three marks, mean (and range) over seeds": markdown_table(head, rows)}
    ablation = [
        (name, *(f"{one[key]:.3f}" for key in ("dev", "reward_gain", "words", "distinct_2", "marks", "kl")))
        for name, one in extra["ablation"].items()
    ]
    if ablation:
        head = ("reward", "dev micro-F1", "reward's rise", "words", "distinct-2", "marks a word", "KL")
        titles["Each term alone, and none: what the generator then writes"] = markdown_table(head, ablation)
    for name, one in extra["samples"].items():
        titles[f"Samples, {name}"] = "\n".join(f"- {text[:240]}" for text in one)
    return titles


def draw_plots(config, cells: dict, extra: dict) -> None:
    """Write rows.png, health.png and context.png into `config.out`."""
    import matplotlib.pyplot as plt

    rows = [row for row in ROWS if (row, config.seeds[0]) in cells]
    figure, axis = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1.4), layout="constrained")
    for offset, (test, colour) in enumerate((("reference", "tab:blue"), ("asr", "tab:orange"))):
        for place, row in enumerate(rows):
            counts = stacked(cells, row, test, config.seeds)
            f1 = micro_f1(counts.sum(axis=1))
            axis.plot(f1, [place + 0.2 * offset] * len(f1), ".", color=colour, alpha=0.6)
            label = test if place == 0 else None
            axis.plot(f1.mean(), place + 0.2 * offset, "|", color=colour, ms=14, label=label)
    label_axes(axis, "micro-F1 over comma, period, question", "")
    axis.set_yticks(range(len(rows)), [ROWS[row] for row in rows])
    axis.invert_yaxis()
    share_legend(figure, [axis])
    write_figure(Path(config.out, "rows.png"), figure)
    plt.close(figure)
    names = ("utility", "domain", "soundness", "diversity", "kl", "entropy", "words", "distinct_2")
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=True):
        for key, one in extra["health"].items():
            axis.plot(one[name], label=f"seed {key}", lw=1)
        label_axes(axis, "draw", name)
    share_legend(figure, list(axes.flat))
    write_figure(Path(config.out, "health.png"), figure)
    plt.close(figure)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, name, said in zip(axes, ("context", "amount"), ("words of right context", "generated words"),
                                strict=True):  # fmt: skip
        points = sorted((int(key), value) for key, value in extra[name].items())
        if points:
            axis.plot(*zip(*points, strict=True), "o-")
        label_axes(axis, said, "micro-F1, " + ("reference" if name == "context" else "dev"))
    write_figure(Path(config.out, "context.png"), figure)
    plt.close(figure)
