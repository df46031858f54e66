"""What generative calibration found, drawn: tasks, the paper's chart, imbalance, how many inputs it takes."""

from pathlib import Path

import numpy as np

from experiments.grid import mean_interval
from jaxllm import score
from jaxllm.atomic import write_figure

_COLOURS = {
    "icl": "0.75", "channel": "tab:brown", "prototypical": "tab:pink", "contextual": "tab:cyan",
    "domain": "tab:blue", "pmi": "tab:olive", "batch": "tab:purple", "generative": "tab:red",
}  # fmt: skip
TRANSDUCTIVE = ("domain", "batch", "prototypical")


def draw_plots(config, cells, scores, oracle_errors, methods, published) -> None:
    """Write tasks.png, chart.png, inputs.png and, where it was measured, imbalance.png into `config.out`."""
    draws = {
        "tasks": _tasks(config, scores, methods),
        "chart": _chart(config, scores, published),
        "inputs": _inputs(config, cells, scores, oracle_errors),
    }
    if config.imbalanced:
        draws["imbalance"] = _imbalance(config, scores)
    import matplotlib.pyplot as plt

    for name, figure in draws.items():
        write_figure(Path(config.out, f"{name}.png"), figure)
        plt.close(figure)


def _name(method: str) -> str:
    return f"{method}*" if method in TRANSDUCTIVE else method


def _tasks(config, scores, methods):
    """Return bars of macro-F1, a group a task, with 95 % intervals over prompts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1.9 * len(config.data) + 2.5, 4.2), layout="constrained")
    width = 0.85 / len(methods)
    for place, method in enumerate(methods):
        means, halves = [], []
        for source in config.data:
            mean, (low, high) = mean_interval(
                [scores[source, config.shots, seed][method] for seed in config.seeds]
            )
            means.append(mean)
            halves.append((high - low) / 2)
        x = np.arange(len(config.data)) + (place - (len(methods) - 1) / 2) * width
        axes.bar(x, means, width, label=_name(method), color=_COLOURS[method])
        axes.errorbar(x, means, halves, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5)
    axes.set_xticks(np.arange(len(config.data)), config.data)
    axes.set_ylabel(f"macro-F1, {config.shots} shots")
    axes.set_ylim(0, 1)
    figure.legend(
        ncol=len(methods), fontsize=8, loc="outside upper center", title="* sees the inputs to be classified"
    )
    return figure


def _chart(config, scores, published):
    """Return the published bars beside ours."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    ours, halves = [], []
    for method in published:
        per_seed = [
            np.mean([scores[source, config.shots, seed][method] for source in config.data])
            for seed in config.seeds
        ]
        mean, (low, high) = mean_interval(per_seed)
        ours.append(mean)
        halves.append((high - low) / 2)
    x = np.arange(len(published))
    axes.bar(x - 0.2, published.values(), 0.38, color="0.7", label="published: 12 models, 12 tasks")
    label = f"here: {config.model}, {len(config.data)} tasks"
    axes.bar(x + 0.2, ours, 0.38, yerr=halves, capsize=3, color="tab:red", label=label)
    for place, (theirs, mine) in enumerate(zip(published.values(), ours, strict=True)):
        axes.text(place - 0.2, 0.02, f"{theirs:.2f}", ha="center", fontsize=8)
        axes.text(place + 0.2, 0.02, f"{mine:.2f}", ha="center", fontsize=8, color="white")
    axes.set_xticks(x, [_name(method) for method in published])
    axes.set_ylabel(f"macro-F1, {config.shots} shots, mean over tasks")
    figure.legend(ncol=2, fontsize=8, loc="outside upper center")
    return figure


def _inputs(config, cells, scores, oracle_errors):
    """Return two panels: the prior's error, and macro-F1, by the number of inputs it was estimated from."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    sizes = np.array([10, 30, 100, 300])
    left.loglog(sizes, oracle_errors, "o-", color="0.4", label="closed form: distance from the truth")
    if ("curve",) in cells:
        samples = np.array(cells["curve",]["samples"])
        best = score.estimate_prior(samples).log_probs_Y
        counts = [n for n in (4, 8, 16, 32, 64) if n <= len(samples) // 2]
        errors = []
        for count in counts:
            blocks = samples[: len(samples) // count * count].reshape(-1, count, samples.shape[1])
            found = [np.exp(score.estimate_prior(block).log_probs_Y[0]) for block in blocks]
            errors.append(np.sqrt(np.mean((np.array(found) - np.exp(best[0])) ** 2)))
        label = f"{config.data[0]}: distance from the estimate of {len(samples)}"
        left.loglog(counts, errors, "s-", color="tab:red", label=label)
    left.loglog(sizes, oracle_errors[0] * np.sqrt(10 / sizes), ":", color="black", label="slope -1/2")
    left.set_xlabel("inputs L")
    left.set_ylabel("root mean square error of p(y)")
    left.legend(fontsize=8)
    keys = [(source, config.shots, seed) for source in config.data for seed in config.seeds]
    counts = sorted(int(n.split("/")[1]) for n in scores[keys[0]] if n.startswith("generative/"))
    per_seed = np.array(
        [
            [np.mean([scores[s, config.shots, seed][f"generative/{n}"] for s in config.data]) for n in counts]
            for seed in config.seeds
        ]
    )
    lows, highs = zip(*(mean_interval(per_seed[:, i])[1] for i in range(len(counts))), strict=True)
    right.plot(counts, per_seed.mean(axis=0), "o-", color="tab:red", label="generative")
    right.fill_between(counts, lows, highs, color="tab:red", alpha=0.15, label="95 % over prompts")
    for method in ("icl", "contextual", "domain"):
        level = np.mean([scores[key][method] for key in keys])
        right.axhline(level, color=_COLOURS[method], ls="--", label=_name(method))
    right.set_xscale("log", base=2)
    right.set_xticks(counts, counts)
    right.set_xlabel("inputs L")
    right.set_ylabel("macro-F1, mean over tasks")
    right.legend(fontsize=8)
    return figure


def _imbalance(config, scores):
    """Return macro-F1 by the exemplars' imbalance, before and after."""
    import matplotlib.pyplot as plt

    steps = ((2, 2), (3, 1), (4, 0))
    figure, all_axes = plt.subplots(
        1,
        len(config.imbalanced),
        figsize=(4.6 * len(config.imbalanced), 3.8),
        layout="constrained",
        squeeze=False,
    )
    for axes, source in zip(all_axes[0], config.imbalanced, strict=True):
        for method in ("icl", "contextual", "domain", "generative"):
            rows = []
            for counts in steps:
                keys = [
                    (source, counts if seed % 2 else counts[::-1], seed)
                    for seed in config.seeds[: config.extra_seeds]
                ]
                rows.append(mean_interval([scores[key][method] for key in keys]))
            means = [mean for mean, _ in rows]
            halves = [(high - low) / 2 for _, (low, high) in rows]
            x = np.arange(3) + 0.05 * list(_COLOURS).index(method) - 0.15
            axes.errorbar(x, means, halves, fmt="o-", capsize=2, color=_COLOURS[method], label=_name(method))
        axes.set_xticks(range(3), ["2 and 2", "3 and 1", "4 and 0"])
        axes.set_xlabel(f"{source}: exemplars of either label")
        axes.set_ylabel("macro-F1")
        axes.set_ylim(0, 1)
        axes.legend(fontsize=8, loc="lower left")
    return figure
