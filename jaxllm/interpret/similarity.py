"""Representational similarity: do distances between states track distances of what they stand for?

Every score comes with those of permuted rows, which keep both geometries and break their pairing.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.stats import rankdata

from jaxllm.errors import UserError, unknown

Measure = Literal["spearman", "pearson", "kendall", "cka"]


class Similarity(NamedTuple):
    """How alike two geometries of the same rows are."""

    score: float
    null: np.ndarray  # [permutations] the scores of permuted rows
    p_value: float  # share of permutations that score as much, the given order counted as one of them


def similarity(
    x_ND: np.ndarray,
    distances_NN: np.ndarray,
    *,
    measure: Measure = "spearman",
    permutations: int = 1000,
    seed: int = 0,
) -> Similarity:
    """Return how far similarity of states follows nearness of what they stand for.

    States are compared by the correlation of their vectors. Over pairs of rows, each pair once, that is
    correlated with minus the distances: by ranks ("spearman") or linearly ("pearson"). "kendall" is
    Kendall's tau-b of each row with its row of distances, itself left out, averaged over rows: the paper's
    score without its diagonal, in which every row agrees with itself. "cka" compares all states at once with
    the similarities that distances of a Euclidean space imply (linear centred kernel alignment): for places
    give chords, |u - v| of `unit_vectors`.

    Args:
      x_ND: states of N rows.
      distances_NN: symmetric, 0 on the diagonal.
      measure: see above.
      permutations: of the rows, 0 or more.
      seed: of the permutations.

    Raises:
      UserError: an unknown measure, fewer than three rows, distances of another shape, rows that do not vary.

    Examples:
      >>> x = np.random.default_rng(0).normal(size=(30, 4))
      >>> distances = np.linalg.norm(x[:, None] - x, axis=-1)
      >>> found = similarity(x, distances, measure="cka", permutations=99)
      >>> round(found.score, 6), found.p_value, bool(found.null.max() < 0.5)
      (1.0, 0.01, True)
    """
    if measure not in get_args(Measure):
        raise unknown("measure", measure, get_args(Measure))
    x_ND, distances_NN = np.asarray(x_ND, np.float64), np.asarray(distances_NN, np.float64)
    N = len(x_ND)
    if x_ND.ndim != 2 or N < 3 or distances_NN.shape != (N, N):
        raise UserError(
            f"states have shape {x_ND.shape} and distances {distances_NN.shape}; give [N, D] and [N, N], "
            "N from 3 on"
        )
    if not (np.isfinite(x_ND).all() and np.isfinite(distances_NN).all()) or (np.ptp(x_ND, axis=1) == 0).any():
        raise UserError("a state is constant, or states or distances hold NaN; leave such rows out")
    score = {"kendall": _kendall, "cka": _cka}.get(measure, _correlation(measure == "spearman"))(
        x_ND, distances_NN
    )
    draw = np.random.default_rng([seed, 43])
    null = np.array([score(draw.permutation(N)) for _ in range(permutations)])
    found = score(np.arange(N))
    return Similarity(found, null, float((1 + np.sum(null >= found - 1e-12)) / (1 + permutations)))


_Score = Callable[[np.ndarray], float]  # of an order of the rows of distances


def _correlation(ranked: bool) -> Callable[[np.ndarray, np.ndarray], _Score]:
    def prepare(x_ND, distances_NN):
        upper = np.triu_indices(len(x_ND), 1)
        transform = rankdata if ranked else np.asarray
        mine = _unit(transform(np.corrcoef(rankdata(x_ND, axis=1) if ranked else x_ND)[upper]))
        theirs_NN = np.zeros(distances_NN.shape)
        theirs_NN[upper] = _unit(transform(-distances_NN[upper]))
        theirs_NN += theirs_NN.T
        return lambda order: float(mine @ theirs_NN[np.ix_(order, order)][upper])

    return prepare


def _kendall(x_ND, distances_NN) -> _Score:
    """Return tau-b by rows: signs of all differences within a row, the row itself left out."""
    similar_NN = np.corrcoef(rankdata(x_ND, axis=1))
    np.fill_diagonal(similar_NN, np.nan)
    far_NN = -distances_NN.copy()
    np.fill_diagonal(far_NN, np.nan)
    mine, theirs = (np.nan_to_num(np.sign(a[:, :, None] - a[:, None, :])).astype(np.float32)
                    for a in (similar_NN, far_NN))  # fmt: skip
    sizes = [np.sqrt(np.sum(np.abs(a), axis=(1, 2), dtype=np.float64)) for a in (mine, theirs)]

    def score(order):
        placed = theirs[order][:, order][:, :, order]
        together = np.einsum("ijk,ijk->i", mine, placed, dtype=np.float64)
        return float(np.mean(together / np.maximum(sizes[0] * sizes[1][order], 1e-30)))

    return score


def _cka(x_ND, distances_NN) -> _Score:
    centred_ND = x_ND - x_ND.mean(0)
    mine_NN = centred_ND @ centred_ND.T
    square_NN = distances_NN**2
    theirs_NN = -0.5 * (square_NN - square_NN.mean(0) - square_NN.mean(1)[:, None] + square_NN.mean())
    scale = np.linalg.norm(mine_NN) * np.linalg.norm(theirs_NN)
    return lambda order: float(np.sum(mine_NN * theirs_NN[np.ix_(order, order)]) / scale)


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    return centred / np.linalg.norm(centred)
