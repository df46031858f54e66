"""What TART's study found: figures, claims, tables, plots."""

from pathlib import Path

import numpy as np

from experiments.grid import mean_interval
from experiments.tart.ablations import mean_of, names_of
from jaxllm.atomic import write_figure
from jaxllm.plots import label_axes, share_legend
from jaxllm.report import Claim, decide, markdown_table

PAPER, SPEC = "arXiv 2306.07536", "issue: TART"
CALIBRATED = ("contextual", "domain", "batch")


def mean_over(outcomes: dict, sources, seed: int, shots: int, method: str) -> float | None:
    """Return a method's accuracy over tasks that all have it, of a seed; None: none has."""
    found = [outcomes.get((source, seed, shots), {}).get(method) for source in sources]
    found = [value for value in found if value is not None]
    return float(np.mean(found)) if found else None


def gain(outcomes, config, sources, shots, method, rival) -> list[float]:
    """Return a method's accuracy less a rival's, for each seed, over the tasks that have both.

    Either may be a tuple: the best of these on average over the tasks of the seed.
    """
    method, rival = ((one,) if isinstance(one, str) else one for one in (method, rival))
    gains = []
    for seed in config.seeds:
        cells = [outcomes.get((source, seed, shots), {}) for source in sources]
        both = [cell for cell in cells if all(name in cell for name in (*method, *rival))]
        own, other = (
            max(np.mean([cell[name] for cell in both]) for name in names) if both else np.nan
            for names in (method, rival)
        )
        gains.append(float(own - other))
    return gains


def judge(config, oracle, outcomes, ablations) -> tuple[dict[str, float], list[Claim]]:
    """Return figures and claims."""
    metrics = {}
    for (features, pairs, alpha), cell in oracle.items():
        at = f"d{features}/k{pairs}/alpha{alpha:g}"
        metrics |= {f"oracle/{at}/{name}": cell[name] for name in ("module", "oracle", "bayes", "gap")}
    methods = sorted({method for cell in outcomes.values() for method in cell})
    for kind, sources in (("binary", config.data), ("many", config.many)):
        for shots in sorted({key[2] for key in outcomes}):
            for method in methods:
                if (mean := _mean(config, outcomes, sources, shots, method)) is not None:
                    metrics[f"accuracy/{kind}/{shots}/{method}"] = mean
    for what in ("choices", "imbalance", "loss"):
        for name in names_of(ablations, what):
            metrics[f"{what}/{name}"] = mean_of(ablations, what, name)
    claims = []
    shots, most = config.prompt_shots, max(config.shots)
    have_stream = shots in config.shots
    if have_stream:
        for rival, said in (
            ("decoder/icl_abstaining", "over ICL, what is no label an error"),
            ("decoder/icl", "over ICL's likeliest label"),
            (tuple(f"decoder/{name}" for name in CALIBRATED), "over the best of three calibrated ICLs"),
        ):
            claims.append(
                _gain(config, outcomes, shots, "decoder/tart", rival, f"TART, vectors of texts, {said}")
            )
    if (config.data[0], config.seeds[0], shots) in outcomes and have_stream:
        claims.append(_gain(config, outcomes, shots, "decoder/tart_leave_one_out", "decoder/tart_vanilla",
                            "TART, leave-one-out vectors over those of one prompt"))  # fmt: skip
        claims.append(_gain(config, outcomes, shots, "decoder/tart", "decoder/tart_leave_one_out",
                            "TART, vectors of texts over leave-one-out", paper=SPEC))  # fmt: skip
    for at in sorted({min(config.shots), most}):
        for name in ("decoder", "encoder"):
            said = f"TART over a linear probe of the same components, {name}"
            claims.append(_gain(config, outcomes, at, f"{name}/tart", f"{name}/same_probe", said, paper=SPEC))
    claims.append(_gain(config, outcomes, config.tuned_shots, "encoder/tart", "encoder/lora",
                        "TART over LoRA fine-tuning of the encoder", paper=SPEC))  # fmt: skip
    metrics |= (split := split_gap(config, outcomes))
    if split:
        gains = [reasoning - representation for representation, reasoning in _splits(config, outcomes)]
        claims.append(_claim("the reasoning gap is above the representation gap, by", PAPER, gains))
    return metrics, [claim for claim in claims if claim is not None]


def split_gap(config, outcomes) -> dict[str, float]:
    """Return the parts of (fine-tuning - ICL) of the decoder: the probe of all dimensions stands between."""
    if not (splits := _splits(config, outcomes)):
        return {}
    sources, shots = config.tuned_decoder, config.prompt_shots
    closed = gain(outcomes, config, sources, shots, "decoder/tart", "decoder/icl_abstaining")
    representation, reasoning = np.mean(splits, axis=0)
    return {
        "gap/representation": float(representation), "gap/reasoning": float(reasoning),
        "gap/closed_by_tart": float(np.mean(closed)),
    }  # fmt: skip


def _splits(config, outcomes) -> list[tuple[float, float]]:
    sources, shots = config.tuned_decoder, config.prompt_shots
    if not sources or shots not in config.shots:
        return []
    representation = gain(outcomes, config, sources, shots, "decoder/lora", "decoder/probe")
    reasoning = gain(outcomes, config, sources, shots, "decoder/probe", "decoder/icl_abstaining")
    return list(zip(representation, reasoning, strict=True))


def _gain(config, outcomes, shots, method, rival, said, paper=PAPER) -> Claim | None:
    gains = gain(outcomes, config, config.data, shots, method, rival)
    if not np.isfinite(gains).all():
        return None
    return _claim(f"{said}, {shots} examples", paper, gains)


def _claim(said: str, source: str, gains: list[float]) -> Claim:
    mean, interval = mean_interval(gains)
    return Claim(said, source, mean, holds=decide(interval, above=0), interval=interval)


def sections(config, oracle, outcomes, ablations) -> dict[str, str]:
    """Return tables."""
    cells = []
    for (f, k, alpha), cell in oracle.items():
        scores = (f"{cell[name]:.3f}" for name in ("module", "oracle", "bayes"))
        gap, losses = f"{cell['gap']:+.3f} ± {cell['half']:.3f}", (cell["module_loss"], cell["oracle_loss"])
        cells.append((f, k, f"{alpha:g}", *scores, f"{cell['ridge']:g}", gap, *(f"{x:.3f}" for x in losses)))
    head = ("d", "k", "alpha", "module", "best ridge", "true weights", "ridge", "gap", "loss", "ridge's loss")
    found = {"The module on fresh problems": markdown_table(head, cells)}
    for kind, sources in (("binary", config.data), ("many classes", config.many)):
        rows = []
        shots_of = sorted({key[2] for key in outcomes})
        for method in sorted({m for key, cell in outcomes.items() if key[0] in sources for m in cell}):
            for shots in shots_of:
                by_task = [
                    [
                        v
                        for seed in config.seeds
                        if (v := outcomes.get((s, seed, shots), {}).get(method)) is not None
                    ]
                    for s in sources
                ]
                if any(by_task):
                    rows.append((method, shots, *(f"{np.mean(v):.3f}" if v else "" for v in by_task)))
        if rows:
            found[f"Accuracy, {kind}"] = markdown_table(("method", "examples", *sources), rows)
    titles = {
        "choices": "TART's choices, the encoder's vectors", "imbalance": "Four of five examples of one class",
        "loss": "Log-loss",
    }  # fmt: skip
    for what, title in titles.items():
        rows = [(name, f"{mean_of(ablations, what, name):.3f}") for name in names_of(ablations, what)]
        found[title] = markdown_table(("variant", "mean"), rows)
    return found


def draw_plots(config, oracle, outcomes, ablations) -> None:
    """Write oracle.png, tasks.png, shots.png and choices.png into `config.out`."""
    import matplotlib.pyplot as plt

    for name, draw in (("oracle", _draw_oracle), ("tasks", _draw_tasks), ("shots", _draw_shots)):
        figure = draw(config, oracle if name == "oracle" else outcomes)
        write_figure(Path(config.out, f"{name}.png"), figure)
        plt.close(figure)
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = [(what, name) for what in ("choices", "imbalance") for name in names_of(ablations, what)]
    axis.barh([f"{name} ({what})" for what, name in names], [mean_of(ablations, *one) for one in names])
    label_axes(axis, "accuracy, mean over binary tasks", "")
    axis.set_yticks(range(len(names)), [f"{name} ({what})" for what, name in names])
    write_figure(Path(config.out, "choices.png"), figure)
    plt.close(figure)


def _draw_oracle(config, oracle):
    import matplotlib.pyplot as plt

    alphas = sorted({alpha for _, _, alpha in oracle})
    figure, axes = plt.subplots(
        1, len(alphas), figsize=(3.6 * len(alphas), 3.4), layout="constrained", sharey=True, squeeze=False
    )
    for axis, alpha in zip(axes[0], alphas, strict=True):
        for number, features in enumerate(sorted({f for f, _, _ in oracle})):
            pairs = sorted(k for f, k, a in oracle if (f, a) == (features, alpha))
            for name, style in (("module", "o-"), ("oracle", "--"), ("bayes", ":")):
                said = {"module": "module", "oracle": "best ridge", "bayes": "true weights"}[name]
                values = [oracle[features, k, alpha][name] for k in pairs]
                axis.plot(pairs, values, style, color=f"C{number}", label=f"{said}, d = {features}", ms=3)
        axis.set_xscale("log")
        label_axes(axis, "labelled pairs", "accuracy", f"alpha = {alpha:g}")
    share_legend(figure, axes[0])
    return figure


def _draw_tasks(config, outcomes):
    import matplotlib.pyplot as plt

    sources, shots = (*config.data, *config.many), config.prompt_shots
    methods = (
        "decoder/icl_abstaining", "decoder/icl", "decoder/batch", "decoder/tart_vanilla", "decoder/tart",
        "encoder/tart", "decoder/probe", "encoder/probe",
    )  # fmt: skip
    methods = [m for m in methods if any(m in outcomes.get((s, config.seeds[0], shots), {}) for s in sources)]
    figure, axis = plt.subplots(figsize=(1.4 * len(sources) + 2, 3.8), layout="constrained")
    width = 0.85 / max(1, len(methods))
    for place, method in enumerate(methods):
        found = [
            [outcomes.get((s, seed, shots), {}).get(method, np.nan) for seed in config.seeds] for s in sources
        ]
        x = np.arange(len(sources)) + (place - (len(methods) - 1) / 2) * width
        axis.bar(x, np.mean(found, axis=1), width, label=method)
        axis.errorbar(
            x, np.mean(found, axis=1), np.std(found, axis=1), fmt="none", ecolor="black", elinewidth=0.7
        )
    label_axes(axis, "", f"accuracy, {shots} examples")
    axis.set_xticks(np.arange(len(sources)), sources)
    share_legend(figure, [axis])
    return figure


def _draw_shots(config, outcomes):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, (kind, sources) in zip(
        axes, (("binary", config.data), ("many classes", config.many)), strict=True
    ):
        for model, colour in (("decoder", "tab:blue"), ("encoder", "tab:orange")):
            for method, style in (("tart", "o-"), ("same_probe", "s--"), ("probe", "^:")):
                points = [(k, _mean(config, outcomes, sources, k, f"{model}/{method}")) for k in config.shots]
                points = [point for point in points if point[1] is not None]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), style, color=colour, label=f"{model}, {method}", ms=4
                    )
        label_axes(axis, "labelled examples", "accuracy", kind)
    share_legend(figure, axes)
    return figure


def _mean(config, outcomes, sources, shots: int, method: str) -> float | None:
    values = [mean_over(outcomes, sources, seed, shots, method) for seed in config.seeds]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
