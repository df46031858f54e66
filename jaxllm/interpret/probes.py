"""Probes: what can be read off states by a linear map in closed form, or by a small network.

A probe is a pytree and a function, `probe(x_ND)`, so that it can be differentiated (see `matched_edits`).
"""

import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.errors import UserError, brief
from jaxllm.train import RunConfig, Task, train

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearProbe(NamedTuple):
    """y = x w + b; of several layers with that axis first."""

    w_DO: jax.Array
    b_O: jax.Array

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """Return predictions [..., O]."""
        return x_ND @ self.w_DO + self.b_O


class MLPProbe(NamedTuple):
    """y = relu(x w1 + b1) w2 + b2."""

    w1_DF: jax.Array
    b1_F: jax.Array
    w2_FO: jax.Array
    b2_O: jax.Array

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """Return predictions [..., O]."""
        return jax.nn.relu(x_ND @ self.w1_DF + self.b1_F) @ self.w2_FO + self.b2_O


class Fit(NamedTuple):
    """A ridge probe, and how its penalty was chosen."""

    probe: LinearProbe
    penalty: float
    error: float  # mean squared error of the folds held out, of the targets' variance: 1 - R2


def fit_ridge(
    x_ND: np.ndarray,
    y_NO: np.ndarray,
    *,
    penalties: Sequence[float] = PENALTIES,
    groups: np.ndarray | None = None,
    num_folds: int = 4,
    seed: int = 0,
) -> Fit:
    """Return the ridge regression of targets on standardised states, in closed form, in float64.

    Minimises mean |y - x w - b|^2 + penalty |w'|^2, w' in units of each feature's standard deviation. Of
    several penalties the one is taken whose held-out folds have the smallest error; only the given rows are
    seen. Products of features are summed once: a fold is held out by subtracting its own.

    Args:
      x_ND: states.
      y_NO: targets, such as `unit_vectors`; or one-hot classes.
      penalties: to choose from; one alone is taken as it is.
      groups: what must not be split between folds, such as each place's country, [N].
      num_folds: as many.
      seed: of the folds.

    Raises:
      UserError: arrays of unequal length, fewer than two rows or groups, a penalty that is not above 0,
        numbers that are none.

    Examples:
      >>> x = np.random.default_rng(0).normal(size=(200, 5))
      >>> y = x @ np.arange(10.0).reshape(5, 2) + 3
      >>> fit = fit_ridge(x, y)
      >>> fit.penalty, bool(np.allclose(fit.probe(x), y, atol=0.02))
      (0.0001, True)
    """
    x_ND, y_NO = _checked(x_ND, y_NO)
    penalties = [float(one) for one in penalties]
    if not penalties or not all(0 < one < np.inf for one in penalties):
        raise UserError(f"penalties are {brief(penalties)}; give numbers above 0")
    if len(penalties) == 1:
        folds_N, chosen = None, penalties[0]
    else:
        folds_N = _folds(len(x_ND), groups, num_folds, seed)
    mean_D, std_D = x_ND.mean(0, dtype=np.float64), x_ND.std(0, dtype=np.float64)
    std_D = np.where(std_D > 1e-9 * max(std_D.max(), 1e-30), std_D, np.inf)  # a constant feature says nothing
    z_ND, centre_O = ((x_ND - mean_D) / std_D).astype(np.float64), y_NO.mean(0)
    z_ND1 = np.concatenate([z_ND, np.ones((len(z_ND), 1))], axis=1)
    error = float("nan")
    if folds_N is not None:
        sums = [_products(z_ND1[folds_N == k], y_NO[folds_N == k] - centre_O) for k in np.unique(folds_N)]
        gram, cross = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
        errors = np.zeros(len(penalties))
        for k, (mine, mine_cross) in zip(np.unique(folds_N), sums, strict=True):
            held = folds_N == k
            for at, penalty in enumerate(penalties):
                w = _solve(gram - mine, cross - mine_cross, penalty)
                errors[at] += np.sum((z_ND1[held] @ w + centre_O - y_NO[held]) ** 2)
        chosen = penalties[int(np.argmin(errors))]
        error = float(errors.min() / max(np.sum((y_NO - centre_O) ** 2), 1e-30))
    else:
        gram, cross = _products(z_ND1, y_NO - centre_O)
    w = _solve(gram, cross, chosen)
    w_DO = w[:-1] / std_D[:, None]
    b_O = centre_O + w[-1] - mean_D @ w_DO
    return Fit(LinearProbe(w_DO.astype(np.float32), b_O.astype(np.float32)), chosen, error)


def fit_mlp(
    x_LND: np.ndarray,
    y_NO: np.ndarray,
    *,
    hidden: int = 128,
    epochs: int = 50,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    out: str | None = None,
    progress: bool = False,
) -> MLPProbe:
    """Return small networks trained by `jaxllm.train`, those of all layers in one run: each [L, ...].

    Mean squared error, AdamW, a cosine schedule to 0. The weights after the last step are taken: nothing
    that is evaluated later chooses them.

    Args:
      x_LND: states of several layers; they may lie in a file that is mapped.
      y_NO: targets.
      hidden: units.
      epochs: times that each row is seen.
      batch_size: rows a step.
      learning_rate: of the first step.
      weight_decay: of all weights.
      seed: of the weights, and the rows' order.
      out: the run's folder, from which the same call goes on; None: a temporary one.
      progress: show the run's bar.

    Raises:
      UserError: see `fit_ridge`; a rank other than three.
    """
    if np.ndim(x_LND) != 3:
        raise UserError(f"x_LND has {np.ndim(x_LND)} axes; it must have three: layers, texts, width")
    _, y_NO = _checked(x_LND[0], y_NO)
    y_NO = y_NO.astype(np.float32)
    (L, N, D), targets = x_LND.shape, y_NO.shape[1]
    mean_L1D = np.stack([x_ND.mean(0, dtype=np.float64) for x_ND in x_LND]).astype(np.float32)[:, None]
    std_L1D = np.stack([x_ND.std(0, dtype=np.float64) for x_ND in x_LND]).astype(np.float32)[:, None]
    std_L1D = np.where(std_L1D > 0, std_L1D, np.inf)
    centre_O = y_NO.mean(0)
    size = min(batch_size, N)

    def init(key):
        one, other = jax.random.split(key)
        return {
            "w1": jax.random.normal(one, (L, D, hidden), jnp.float32) * D**-0.5,
            "b1": jnp.zeros((L, 1, hidden), jnp.float32),
            "w2": jax.random.normal(other, (L, hidden, targets), jnp.float32) * hidden**-0.5,
            "b2": jnp.zeros((L, 1, targets), jnp.float32),
        }

    axes = {"w1": ("layers", "features", "units"), "b1": ("layers", None, "units"),
            "w2": ("layers", "units", "targets"), "b2": ("layers", None, "targets")}  # fmt: skip

    def batches() -> Iterator[dict]:
        draw = np.random.default_rng([seed, 40])
        while True:
            order = draw.permutation(N)
            for start in range(0, N - size + 1, size):
                rows = np.sort(order[start : start + size])
                x_LBD = (x_LND[:, rows] - mean_L1D) / std_L1D
                yield {"x": x_LBD.swapaxes(0, 1).astype(np.float32), "y": y_NO[rows] - centre_O}

    def loss(params, batch, key):
        del key
        x_LBD = batch["x"].swapaxes(0, 1)
        y_LBO = jax.nn.relu(x_LBD @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
        # A sum over layers: each learns as if it were alone.
        total = jnp.sum(jnp.mean(jnp.square(y_LBO - batch["y"]), axis=(1, 2)))
        return total, {"token_count": jnp.int32(len(batch["x"]))}

    steps = epochs * max(1, N // size)
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunConfig(
            steps=steps, seed=seed, out=out or scratch, save_every=steps, eval_every=steps, keep_last=1,
            keep_best=0, log_every=max(1, steps // 20), progress=progress,
        )  # fmt: skip
        params = jax.device_get(train(Task(init, axes, batches, loss), run, optimizer=optimizer).params)
    w1_LDF = params["w1"] / std_L1D.swapaxes(1, 2)
    b1_L1F = params["b1"] - mean_L1D @ w1_LDF
    return MLPProbe(w1_LDF, b1_L1F, params["w2"], params["b2"] + centre_O)


def r_squared(predicted_NO: np.ndarray, y_NO: np.ndarray) -> float:
    """Return 1 - squared error / squared distance to the targets' mean, all targets together.

    Examples:
      >>> r_squared(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
      0.5
    """
    y_NO = np.asarray(y_NO, np.float64)
    total = np.sum((y_NO - y_NO.mean(0)) ** 2)
    return float(1 - np.sum((np.asarray(predicted_NO, np.float64) - y_NO) ** 2) / total)


def held_out_groups(groups: Sequence, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """Return which rows to hold out, bool [N]: whole groups, until a share of the rows is reached.

    With countries nothing of a held-out country is seen; with (country, region) pairs, or names of regions
    that are part of the texts, cities are held out without their region's name being seen.

    Args:
      groups: of each row, anything hashable.
      share: of rows.
      seed: of the groups' order.

    Raises:
      UserError: one group only, or a share that is not between 0 and 1.

    Examples:
      >>> held_out_groups(["a", "a", "b", "c", "c", "d"], share=0.3).tolist()
      [False, False, True, False, False, True]
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise UserError(
            f"all rows are of one group, {brief(names[0]) if names else 'none'}; they can be held out where "
            "there are two or more (such as countries)"
        )
    if not 0 < share < 1:
        raise UserError(f"share is {brief(share)}; it must be between 0 and 1")
    number = {name: i for i, name in enumerate(names)}
    group_N = np.array([number[name] for name in groups])
    sizes = np.bincount(group_N)
    held = np.zeros(len(names), bool)
    for name in np.random.default_rng([seed, 41]).permutation(len(names)):
        if sizes[held].sum() + sizes[name] <= share * len(group_N) + sizes[name] / 2:
            held[name] = True
    if held.all() or not held.any():
        held = np.arange(len(names)) == int(np.argmin(sizes))
    return held[group_N]


def _checked(x_ND, y_NO) -> tuple[np.ndarray, np.ndarray]:
    x_ND, y_NO = np.asarray(x_ND), np.asarray(y_NO, np.float64)
    if x_ND.ndim != 2 or y_NO.ndim != 2 or len(x_ND) != len(y_NO) or len(x_ND) < 2:
        raise UserError(
            f"states have shape {x_ND.shape} and targets {y_NO.shape}; give [N, D] and [N, O], N from 2 on"
        )
    if not (np.isfinite(x_ND).all() and np.isfinite(y_NO).all()):
        raise UserError("states or targets hold infinities or NaN; leave such rows out")
    return x_ND, y_NO


def _folds(N: int, groups, num_folds: int, seed: int) -> np.ndarray:
    groups = np.arange(N) if groups is None else np.asarray(groups)
    group_N = np.unique(groups, return_inverse=True)[1].ravel()
    if len(group_N) != N:
        raise UserError(f"groups name {len(group_N)} rows and there are {N}; name one group a row")
    count = group_N.max() + 1
    if min(count, num_folds) < 2:
        raise UserError(
            f"{count} groups in {num_folds} folds: a penalty is chosen on two folds at least; give more "
            "groups, or one penalty"
        )
    return (np.random.default_rng([seed, 42]).permutation(count) % num_folds)[group_N]


def _products(z_ND, y_NO) -> tuple[np.ndarray, np.ndarray]:
    return z_ND.T @ z_ND, z_ND.T @ y_NO


def _solve(gram: np.ndarray, cross: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights [D + 1, O]; the last, of a constant 1, is not penalised and counts the rows."""
    rows = gram[-1, -1]
    shrunk = np.full(len(gram), penalty * rows)
    shrunk[-1] = 0
    return np.linalg.solve(gram + np.diag(shrunk), cross)
