"""The module of TART's study: trained, kept, and put beside logistic regressions of the same pairs."""

import functools
import time
from pathlib import Path

import jax
import numpy as np

from experiments.tart.oracle import last_log_odds
from jaxllm.errors import UserError
from jaxllm.in_context import (
    InContextClassifier,
    Reasoner,
    ReasonerRun,
    draw_problems,
    load_reasoner,
    logits,
    save_reasoner,
    train_reasoner,
)
from jaxllm.kept_result import kept_result
from jaxllm.report import Claim, decide
from jaxllm.train import to_dict

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_JUDGED = dict(features=8, pairs=32, alpha=10.0)
_NEAR = 0.02  # of accuracy


def trained_reasoner(run: ReasonerRun) -> tuple[Reasoner, float]:
    """Return the module of a run and the seconds that it took; one that ended is read from its folder."""
    folder = Path(run.out, "module")

    def measure():
        begun = time.process_time()
        reasoner, _ = train_reasoner(run)
        save_reasoner(folder, reasoner, {"run": to_dict(run)})
        return {"cpu_seconds": time.process_time() - begun}

    decisive = {k: v for k, v in to_dict(run).items() if k not in ("out", "progress", "log_every")}
    seconds = kept_result(Path(run.out, "trained.json"), measure, run=decisive)["cpu_seconds"]
    return load_reasoner(folder), seconds


def oracle_cell(
    reasoner: Reasoner, *, features: int, pairs: int, alpha: float, problems: int, seed: int
) -> dict[str, float]:
    """Return accuracy and log-loss of the last label of fresh problems: the module, ridges, the true weights.

    The best ridge is that of the whole set of problems: an oracle that knows their noise.
    """
    drawn = draw_problems(np.random.default_rng([seed, 3]), problems, pairs + 1, features, alphas=(alpha,))
    truth_B = drawn.y_BK[:, -1]
    wide = np.pad(drawn.x_BKF, ((0, 0), (0, 0), (0, reasoner.config.features - features)))
    parts = np.array_split(np.arange(problems), max(1, problems // 128))
    said = [np.asarray(_last_logits(*reasoner, wide[p], drawn.y_BK[p]), np.float64) for p in parts]
    found = {"module": np.concatenate(said)}
    found |= {f"ridge {r:g}": last_log_odds(drawn.x_BKF, drawn.y_BK, r) for r in RIDGES}
    found["true weights"] = np.einsum("bf,bf->b", drawn.x_BKF[:, -1], drawn.w_BF).astype(np.float64)
    right = {name: (z > 0) == truth_B for name, z in found.items()}
    loss = {name: np.logaddexp(0, np.where(truth_B, -z, z)) for name, z in found.items()}
    best = max((name for name in found if name.startswith("ridge")), key=lambda name: right[name].mean())
    gap = right["module"].astype(float) - right[best]
    return {
        "module": float(right["module"].mean()), "oracle": float(right[best].mean()),
        "bayes": float(right["true weights"].mean()), "gap": float(gap.mean()),
        "half": float(1.96 * gap.std(ddof=1) / problems**0.5), "ridge": float(best.split()[1]),
        "module_loss": float(loss["module"].mean()),
        "oracle_loss": float(min(loss[name].mean() for name in found if name.startswith("ridge"))),
        "bayes_loss": float(loss["true weights"].mean()),
    }  # fmt: skip


def near_oracle(reasoner: Reasoner, *, problems: int, seed: int) -> tuple[Claim, dict[str, float]]:
    """Return the claim that a module is within two points of the best ridge, and the cell it is judged by.

    At 8 features, 32 pairs and nearly no noise, or at what a smaller module reads.
    """
    sizes = reasoner.config
    at = _JUDGED | {
        "features": min(_JUDGED["features"], sizes.features),
        "pairs": min(_JUDGED["pairs"], sizes.max_pairs),
    }
    cell = oracle_cell(reasoner, **at, problems=problems, seed=seed)
    interval = (cell["gap"] - cell["half"], cell["gap"] + cell["half"])
    said = f"d = {at['features']}, k = {at['pairs']}, alpha = {at['alpha']:g}: within {_NEAR}"
    holds = decide(interval, at_least=-_NEAR)
    said = f"accuracy less the best ridge's, {said}"
    return Claim(said, "issue: TART", cell["gap"], holds, interval=interval), cell


def oracle_cells(
    reasoner: Reasoner, features, pairs, alphas, *, problems: int, seed: int
) -> dict[tuple[int, int, float], dict[str, float]]:
    """Return `oracle_cell` by (features, pairs, alpha), of all that the module can read."""
    sizes = reasoner.config
    return {
        (f, k, alpha): oracle_cell(reasoner, features=f, pairs=k, alpha=alpha, problems=problems, seed=seed)
        for f in features
        for k in pairs
        for alpha in alphas
        if f <= sizes.features and k <= sizes.max_pairs
    }


@functools.partial(jax.jit, static_argnames="config")
def _last_logits(config, params, x_BKF, y_BK):
    return logits(config, params, x_BKF, y_BK)[:, -1]


def check_hidden_labels(reasoner: Reasoner, seed: int) -> dict[str, float]:
    """Return how many bits of a score other test items' labels, and its own, decide; and its spread.

    In a whole sequence the last label is replaced; in the cache items are asked beside others.
    """
    sizes, draw = reasoner.config, np.random.default_rng([seed, 4])
    pairs = min(32, sizes.max_pairs)
    drawn = draw_problems(draw, 16, pairs + 1, sizes.features, alphas=(2.0,))
    other = drawn.y_BK.copy()
    other[:, -1] = 1 - other[:, -1]
    both = [
        np.asarray(jax.jit(lambda x, y: logits(*reasoner, x, y))(drawn.x_BKF, y)) for y in (drawn.y_BK, other)
    ]
    changed = int(np.sum(both[0].view(np.int32) != both[1].view(np.int32)))
    x_KF, labels = drawn.x_BKF[0, :-1], drawn.y_BK[0, :-1].astype(int).tolist()
    items_NF = draw.standard_normal((20, sizes.features))
    options = dict(components=0)
    whole = InContextClassifier(reasoner, x_KF, labels, **options)
    together, alone = whole.log_odds(items_NF), whole.log_odds(items_NF[:1])
    changed += int(np.sum(together[:1].view(np.int64) != alone.view(np.int64)))
    spread = {}
    for orders in (1, 8):
        chances = []
        for number in range(8):
            order = np.random.default_rng([seed, number]).permutation(pairs)
            one = InContextClassifier(
                reasoner, x_KF[order], [labels[i] for i in order], permutations=orders, seed=number, **options
            )
            chances.append(np.exp(one.log_probs(items_NF)[:, 1]))
        spread[f"spread_of_chance/{orders}_orders"] = float(np.std(chances, axis=0).mean())
    try:
        too_many = np.zeros((1, sizes.max_pairs + 2, sizes.features), np.float32)
        logits(*reasoner, too_many, too_many[..., 0])
        refused = 0.0
    except UserError:
        refused = 1.0
    return {"bits_changed_by_hidden_labels": float(changed), "beyond_training_is_refused": refused} | spread


def cost(reasoner: Reasoner, items: int = 256, repeats: int = 5) -> dict[str, float]:
    """Return the module's size and its milliseconds a test item: asked of the cache, and read anew each."""
    sizes, draw = reasoner.config, np.random.default_rng(0)
    pairs = min(64, sizes.max_pairs)
    x_KF, labels = draw.standard_normal((pairs, sizes.features)), (np.arange(pairs) % 2).tolist()
    items_NF = draw.standard_normal((items, sizes.features))
    one = InContextClassifier(reasoner, x_KF, labels, components=0, permutations=1)
    rows_BKF = np.concatenate(
        [np.broadcast_to(x_KF, (items, *x_KF.shape)), items_NF[:, None]], axis=1, dtype=np.float32
    )
    y_BK = np.broadcast_to(np.append(labels, 0.0), (items, pairs + 1)).astype(np.float32)
    anew = jax.jit(lambda x, y: logits(*reasoner, x, y)[:, -1])
    taken: dict[str, list[float]] = {"cached": [], "anew": []}
    for number in range(repeats + 1):  # the first compiles
        for name, call in (("cached", lambda: one.log_odds(items_NF)),
                           ("anew", lambda: jax.block_until_ready(anew(rows_BKF, y_BK)))):  # fmt: skip
            begun = time.perf_counter()
            call()
            if number:
                taken[name].append(1e3 * (time.perf_counter() - begun) / items)
    return {"module/parameters": float(sizes.num_params)} | {
        f"module/ms_per_item/{name}": float(np.median(values)) for name, values in taken.items()
    }
