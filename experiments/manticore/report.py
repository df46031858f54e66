"""What the Manticore study's cells say: claims with intervals and controls, tables, plots."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.grid import mean_interval, spread
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table

SOURCE = "Roberts et al., arXiv 2406.00894"
Cells = list[dict[str, Any]]


def losses_of(cells: Cells, arm: str) -> np.ndarray:
    """Return an arm's loss by seed."""
    return np.array([cell["losses"][arm] for cell in cells])


def judge(config, cells: Cells, pretrained: dict, spaced: dict) -> tuple[dict[str, float], list[Claim]]:
    """Return (figures, claims) of a study."""
    metrics = {f"loss/{arm}": float(losses_of(cells, arm).mean()) for arm in cells[0]["losses"]}
    best_alone = np.minimum(losses_of(cells, "part 0 alone"), losses_of(cells, "part 1 alone"))
    dear = [losses_of(cells, f"part {part} alone, equal FLOPs") for part in (0, 1)]
    first = config.searches[0]
    hybrid = losses_of(cells, f"N={config.blocks[0]}, {first}")
    claims = []

    def below(what: str, control: np.ndarray, ours: np.ndarray, source: str = SOURCE) -> None:
        mean, interval = mean_interval(control - ours)
        claims.append(Claim(what, source, mean, decide(interval, above=0), interval=interval))

    name = f"the hybrid (N={config.blocks[0]}, {first}, retrained) has a lower loss than"
    below(f"{name} the better part alone at equal steps, by", best_alone, hybrid)
    below(
        f"{name} the better part alone at equal FLOPs (more steps), by", np.minimum(*dear), hybrid, "review"
    )
    wide = "the better part at equal parameters (wider, pretrained on both texts"
    for arm, long in (
        ("parameters", "as long as a part"),
        ("parameters and tokens", "as long as both parts"),
    ):
        control = losses_of(cells, f"better part, equal {arm}")
        below(f"{name} {wide}, {long}), by", control, hybrid, "review")
    below(f"{name} the ensemble of both parts, by", losses_of(cells, "ensemble"), hybrid, "review")
    for arm in ("uniform", "random"):
        control = losses_of(cells, f"N={config.blocks[0]}, {arm}")
        below(f"{name} a {arm} mixture, by", control, hybrid, "review")
    new = losses_of(cells, f"N={config.blocks[0]}, uniform, new tables")
    below(
        "keeping the parts' own tables lowers the loss against new ones, by",
        new,
        losses_of(cells, f"N={config.blocks[0]}, uniform"),
    )
    rounded = losses_of(cells, f"N={config.blocks[0]}, rounded") - hybrid
    mean, interval = mean_interval(rounded)
    claims.append(
        Claim("rounding a trained hybrid to one part a block costs at most 0.1 nats", SOURCE, mean,
              decide(interval, at_most=0.1), interval=interval)
    )  # fmt: skip
    sweep = np.array([cell["sweep"] for cell in cells])
    inner = sweep[:, 1:-1].min(axis=1)
    below(
        "an interior mixture beats both ends of the sweep, by", np.minimum(sweep[:, 0], sweep[:, -1]), inner
    )
    tuned = np.array([[loss for *_, loss in cell["projectors"]] for cell in cells])  # [seeds, shares]
    stage, steps = config.projector_steps, config.projector_steps + config.steps
    below(
        f"tuning projectors alone (at ten times the rate) in the first {stage} of {steps} steps lowers the "
        "loss against tuning all in each, by", tuned[:, 0], tuned[:, -1],
    )  # fmt: skip
    for tokens, untuned, loss in projector_curve(config, cells):
        metrics |= {f"projectors/{tokens}_tokens/untuned": untuned, f"projectors/{tokens}_tokens/tuned": loss}
    if config.blocks[0] == 1:
        for search in config.searches:
            regret = losses_of(cells, f"N=1, {search}") - sweep.min(axis=1)
            metrics[f"regret/{search}"] = float(regret.mean())
    for blocks, found in pretrained.items():
        metrics |= {f"pretrained/N={blocks}/{arm}": loss for arm, loss in found["losses"].items()}
        metrics[f"pretrained/N={blocks}/one_hot_gap"] = found["one_hot_gap"]
    if pretrained:
        worst = max(found["one_hot_gap"] for found in pretrained.values())
        claims.append(
            Claim("a one-hot pretrained hybrid is its component, largest difference of log-probabilities",
                  SOURCE, worst, worst <= 1e-5)
        )  # fmt: skip
    return metrics | {f"spaced/{name}": loss for name, loss in spaced.items()}, claims


def projector_curve(config, cells: Cells) -> list[tuple[int, float, float]]:
    """Return (tokens that projectors saw alone, the uniform hybrid's loss then, and tuned), means."""
    means = np.mean([cell["projectors"] for cell in cells], axis=0)
    per_step = config.batch * config.seq_len
    return [(per_step * round(share * config.projector_steps), *losses) for share, *losses in means.tolist()]


def sections(config, cells: Cells) -> dict[str, str]:
    """Return tables for people."""
    arms = [[arm, spread(losses_of(cells, arm))] for arm in cells[0]["losses"]]
    found = [
        [arm, *("; ".join(f"{row[1]:.2f}" for row in cell["found"][arm]) for cell in cells)]
        for arm in cells[0]["found"]
    ]
    rows = [
        [f"{a:g}", spread([cell["sweep"][place] for cell in cells])] for place, a in enumerate(config.sweep)
    ]
    return {
        "Loss on the mix of both texts, nats a token": markdown_table(["arm", "loss"], arms),
        "Weight of part 1 that searches found, block by block": markdown_table(
            ["search", *(f"seed {seed}" for seed in config.seeds)], found
        ),
        "Loss by the weight of part 1, N=1": markdown_table(["weight", "loss"], rows),
        "Loss of the uniform hybrid by tokens that projectors saw alone, at equal steps": markdown_table(
            ["tokens", "before tuning", "tuned"],
            [
                [f"{tokens:,}", f"{before:.4f}", f"{tuned:.4f}"]
                for tokens, before, tuned in projector_curve(config, cells)
            ],
        ),
    }


def draw_plots(config, cells: Cells) -> None:
    """Draw the sweep, losses by tokens that projectors saw, and mixtures over the steps of a search."""
    from matplotlib import pyplot

    folder = Path(config.out)
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for cell, seed in zip(cells, config.seeds, strict=True):
        axis.plot(config.sweep, cell["sweep"], marker="o", label=f"seed {seed}")
    axis.legend()
    label_axes(axis, "weight of part 1, the Mamba, frozen", "loss, nats a token", "One block, tuned")
    figure.savefig(folder / "sweep.png")
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    tokens, *losses = zip(*projector_curve(config, cells), strict=True)
    for name, values in zip(("before tuning", "tuned"), losses, strict=True):
        axis.plot(tokens, values, marker="o", label=name)
    axis.legend()
    label_axes(axis, "tokens that projectors saw first, alone", "loss, nats a token", "Uniform mixture")
    figure.savefig(folder / "projectors.png")
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for arm, curve in cells[0]["curves"].items():
        for block in range(len(curve[0]["alphas"])):
            weights = [point["alphas"][block][1] for point in curve]
            axis.plot([point["step"] for point in curve], weights, label=f"{arm}, block {block}")
    label_axes(axis, "step of the search", "weight of part 1, the Mamba", whole=True)
    share_legend(figure, [axis])
    figure.savefig(folder / "mixtures.png")
    pyplot.close("all")
