"""What the runs of `causal_space` come to: figures, claims with intervals, tables."""

from collections.abc import Callable

import numpy as np

from experiments.causal_space.exchange import WAYS
from experiments.causal_space.study import ARMS, CONTROLS, SPLITS
from jaxllm.interpret import bootstrap_interval
from jaxllm.report import Claim, decide, markdown_table, t_interval

_PAPER, _OURS = "Chen et al. 2023", "this experiment"
_TOP1, _ASCENT, _DESCENT, _KENDALL = 0.4971, -9.26, 0.00194, 0.384  # of GPT-Neo-1.3B


def effect(
    run: dict, way: str, arm: str, figure: str, *, between: bool = True, displacement: float | None = None
) -> np.ndarray:
    """Return each place's change of a figure under an edit, its mean over depths.

    Args:
      run: of one model.
      way: towards, away or relocate.
      arm: of `MatchedEdits`.
      figure: see `study.edited`.
      between: depths with blocks between the edit and what reads it; else the last alone.
      displacement: None: the largest.
    """
    edits = run["edits"]["edits"]
    displacement = max(one["displacement"] for one in edits) if displacement is None else displacement
    chosen = [
        np.array(one[figure], float)
        for one in edits
        if (one["way"], one["arm"], one["displacement"]) == (way, arm, displacement)
        and (one["depth"] < run["layers"]) == between
    ]
    return np.mean(chosen, axis=0) - before(run, way, figure)


def before(run: dict, way: str, figure: str) -> np.ndarray:
    """Return each place's figure without an edit; 0 of those that edits alone have."""
    name = f"relocate_{figure}" if way == "relocate" and figure not in ("classified",) else figure
    known = run["edits"]["before"]
    if way == "relocate" and figure == "classified":  # as the other place's country
        return np.zeros(len(run["edits"]["country"]))
    return np.array(known.get(name, np.zeros(len(run["edits"]["country"]))), float)


def specific(run: dict, way: str, figure: str, **where) -> np.ndarray:
    """Return by how much an edit changes a figure beyond the strongest control, up or (away) down."""
    sign = -1 if way == "away" else 1
    changes = {arm: sign * effect(run, way, arm, figure, **where) for arm in ARMS}
    strongest = max(CONTROLS, key=lambda arm: changes[arm].mean())
    return changes["gradient"] - changes[strongest]


def mean_of(runs: list[dict], read: Callable[[dict], np.ndarray]) -> tuple[float, tuple[float, float] | None]:
    """Return (mean, 95 % interval): over seeds, or over one model's places, countries resampled whole."""
    found = [np.asarray(read(run), float) for run in runs]
    if len(runs) > 1:
        means = [float(values.mean()) for values in found]
        return float(np.mean(means)), t_interval(means)
    [values] = found
    countries = runs[0].get("edits", {}).get("country", ())
    blocks = countries if len(countries) == len(values) else None
    return float(values.mean()), bootstrap_interval(values, blocks)


def of_splits(runs: list[dict], split: str, figure: str = "r2") -> np.ndarray:
    """Return a probe's figure at the middle depth, one a seed: of worlds, or of one model's splits."""
    if len(runs) > 1:
        return np.array([run["splits"][0][split][figure][0] for run in runs])
    return np.array([one[split][figure][0] for one in runs[0]["splits"]])


def judge(name: str, runs: list[dict]) -> list[Claim]:
    """Return the claims on one subject, the headline first."""
    claims = []

    def add(text, values, source=_OURS, paper=None, **bounds):
        mean, interval = values if isinstance(values, tuple) else (float(np.mean(values)), t_interval(values))
        claims.append(Claim(f"{name}: {text}", source, measured=mean, interval=interval, paper=paper,
                            holds=decide(interval, **bounds)))  # fmt: skip

    over = lambda *args, **where: mean_of(runs, lambda run: specific(run, *args, **where))
    if "edits" in runs[0]:
        add("given another place's coordinates, its state says that place's country, nats above "
            "the strongest control of the same norm and displacement",
            over("relocate", "name"), above=0)  # fmt: skip
        add("moved away from its coordinates it loses its country's name, nats beyond the strongest control",
            over("away", "name"), above=0)  # fmt: skip
        add("moved towards its coordinates it gains its country's name, nats beyond the strongest control",
            over("towards", "name"), above=0)  # fmt: skip
        change = lambda way, arm, figure: mean_of(runs, lambda run: effect(run, way, arm, figure))
        add("away lowers the log-probability of the country (the paper: its first token's logit)",
            change("away", "gradient", "name"), _PAPER, _ASCENT, below=0)  # fmt: skip
        add("so does a random direction that keeps the norm and goes as far",
            change("away", "random", "name"), below=0)  # fmt: skip
        add("towards raises greedy accuracy, of whole names", change("towards", "gradient", "greedy"), _PAPER,
            _DESCENT, above=0)  # fmt: skip
        if name != "world":
            add("names the country of places no probe has seen as often as GPT-Neo-1.3B did, within 0.1",
                mean_of(runs, lambda run: before(run, "towards", "greedy")), _PAPER, _TOP1,
                at_least=_TOP1 - 0.1, at_most=_TOP1 + 0.1)  # fmt: skip
        add("with blocks between, away costs a classifier more than the strongest control does",
            over("away", "classified"), _PAPER, above=0)  # fmt: skip
        add("without blocks between, the same (what probe and classifier share)",
            over("away", "classified_here", between=False), _PAPER, above=0)  # fmt: skip
    moved = lambda run, way: np.array(run["exchange"][way]["displacement"])
    add("100 steps of the paper's own control, exchanged gradients, go at least half as far as its ascent",
        mean_of(runs, lambda run: moved(run, "exchanged") / moved(run, "ascent")), at_least=0.5)  # fmt: skip
    for kind in runs[0]["peers"]:
        peers = [run["peers"][kind] for run in runs]
        add(f"R2 of a probe at half depth, regions held out, above the model's {kind} peer",
            of_splits(runs, "regions") - of_splits(peers, "regions"), above=0)  # fmt: skip
        if "edits" in peers[0]:
            add(f"what relocation does beyond controls, above the same of the {kind} peer",
                mean_of(runs, lambda run, kind=kind: specific(run, "relocate", "name")
                        - specific(run["peers"][kind], "relocate", "name")), above=0)  # fmt: skip
    add("R2 of a probe at half depth, whole countries held out", of_splits(runs, "countries"), above=0)
    add("what a random split of cities adds to R2 over one by regions, whose names are in the text",
        of_splits(runs, "cities") - of_splits(runs, "regions"), above=0)  # fmt: skip
    kendall = [run["similarity"]["kendall"]["with_diagonal"] for run in runs]
    add("similarity of cities at the last layer, the paper's Kendall tau with its diagonal, within 0.1",
        (float(np.mean(kendall)), t_interval(kendall)), _PAPER, _KENDALL, at_least=_KENDALL - 0.1,
        at_most=_KENDALL + 0.1)  # fmt: skip
    p_values = [run["similarity"]["kendall"]["p"] for run in runs]
    claims.append(Claim(f"{name}: the largest p-value of that tau under permuted places is at most 0.05",
                        _OURS, measured=max(p_values), holds=max(p_values) <= 0.05))  # fmt: skip
    return claims


def summary(runs: list[dict]) -> dict[str, float]:
    """Return the named figures of one subject: means over its runs."""
    found: dict[str, float] = {}
    for split in SPLITS:
        for figure in ("r2", "km", "shuffled_r2"):
            found[f"{figure}/{split} held out"] = float(np.mean(of_splits(runs, split, figure)))
    for kind in runs[0]["peers"]:
        peers = [run["peers"][kind] for run in runs]
        found[f"r2/regions held out/{kind}"] = float(np.mean(of_splits(peers, "regions")))
    for measure in ("spearman", "pearson", "cka"):
        scores = [run["similarity"][measure] for run in runs]
        found[f"similarity/{measure}, last layer"] = float(np.mean([one["score"][-1] for one in scores]))
        found[f"similarity/{measure}, permuted"] = float(np.mean([one["null"][-1] for one in scores]))
    found["similarity/kendall, without its diagonal"] = float(
        np.mean([run["similarity"]["kendall"]["score"] for run in runs])
    )
    for way in WAYS:
        one = [run["exchange"][way] for run in runs]
        found[f"paper's {way}/displacement"] = float(np.mean([np.mean(x["displacement"]) for x in one]))
        found[f"paper's {way}/loss after 10 steps, of that before"] = float(
            np.mean([x["loss"][10] / x["loss"][0] for x in one])
        )
    if "edits" in runs[0]:
        for figure in ("name", "greedy", "template", "classified"):
            read = lambda run: before(run, "towards", figure)  # noqa: B023
            found[f"before/{figure}"] = float(np.mean([read(run).mean() for run in runs]))
        for way in ("towards", "away", "relocate"):
            for arm in ARMS:
                read = lambda run: effect(run, way, arm, "name")  # noqa: B023
                found[f"{way}/{arm}"] = float(np.mean([read(run).mean() for run in runs]))
        lost = {arm: found[f"away/{arm}"] for arm in ARMS}
        if lost["gradient"] < 0:
            strongest = min(lost[arm] for arm in CONTROLS)
            found["share of ascent's loss that the strongest control has too"] = strongest / lost["gradient"]
    return {name: value for name, value in found.items() if np.isfinite(value)}


def sections(runs: list[dict]) -> dict[str, str]:
    """Return tables for people: probes by depth, similarity by depth, edits by depth and displacement."""
    first = runs[0]
    mean = lambda read: np.mean([read(run) for run in runs], axis=0)
    found = {}
    depths = first["probes"]["depths"]
    columns = [mean(lambda run, s=s, f=f: run["probes"][s][f]) for s in SPLITS for f in ("r2", "km")]
    peers = [(kind, mean(lambda run, k=kind: run["peers"][k]["probes"]["regions"]["r2"]))
             for kind in first["peers"]]  # fmt: skip
    rows = [
        (depth, *(f"{c[at]:,.0f}" if i % 2 else f"{c[at]:.3f}" for i, c in enumerate(columns)),
         *(f"{values[at]:.3f}" for _, values in peers))
        for at, depth in enumerate(depths)
    ]  # fmt: skip
    head = ["depth", *(f"{f}, {s} held out" for s in SPLITS for f in ("R2", "median km")),
            *(f"R2, regions, {kind}" for kind, _ in peers)]  # fmt: skip
    found["probes (ridge)"] = markdown_table(head, rows)
    if "mlp_r2" in first["probes"]["regions"]:
        rows = [
            (depth, *(f"{mean(lambda run, s=s, f=f: run['probes'][s][f])[at]:{form}}"
                      for s in SPLITS[1:] for f, form in (("mlp_r2", ".3f"), ("mlp_km", ",.0f"))))
            for at, depth in enumerate(first["probes"]["regions"]["mlp_depths"])
        ]  # fmt: skip
        head = ["depth", *(f"{f}, {s} held out" for s in SPLITS[1:] for f in ("R2", "median km"))]
        found["probes (MLP)"] = markdown_table(head, rows)
    likeness = first["similarity"]
    rows = [
        (depth, *(f"{mean(lambda run, m=m: run['similarity'][m]['score'])[at]:.3f} "
                  f"(permuted {mean(lambda run, m=m: run['similarity'][m]['null'])[at]:.3f}, "
                  f"p {max(run['similarity'][m]['p'][at] for run in runs):.3g})"
                  for m in ("spearman", "pearson", "cka")))
        for at, depth in enumerate(likeness["depths"])
    ]  # fmt: skip
    found[f"similarity of {likeness['places']} places"] = markdown_table(
        ["depth", "Spearman", "Pearson", "CKA"], rows
    )
    if "edits" in first:
        found["edits"] = _edit_table(runs)
    return found


def _edit_table(runs: list[dict]) -> str:
    rows = []
    for at, one in enumerate(runs[0]["edits"]["edits"]):
        means = lambda figure: np.mean([  # noqa: E731
            np.mean(run["edits"]["edits"][at][figure]) for run in runs  # noqa: B023
        ])  # fmt: skip
        base = lambda figure: np.mean([before(run, one["way"], figure).mean() for run in runs])  # noqa: B023
        rows.append((
            one["way"], one["depth"], one["displacement"], one["arm"], f"{means('name') - base('name'):+.3f}",
            f"{means('greedy') - base('greedy'):+.3f}", f"{means('template') - base('template'):+.3f}",
            f"{means('classified'):.3f}", f"{means('classified_here'):.3f}",
        ))  # fmt: skip
    head = ("way", "depth", "displacement", "edit", "nats of the name", "greedy accuracy",
            "nats a token of the prompt", "classified", "classified at once")  # fmt: skip
    order = sorted(range(len(rows)), key=lambda i: (["towards", "away", "relocate"].index(rows[i][0]), i))
    return markdown_table(head, [rows[i] for i in order])
