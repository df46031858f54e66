"""Shares of texts in two populations, and whether they differ when the model itself is drawn again.

A tuned model gives as many samples as one asks for, so a test that takes samples as replicates finds any
difference significant. What varies is the model: its corpus, its seed. `refit_test` takes one share a model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.errors import UserError


class Comparison(NamedTuple):
    """The difference of two shares as Cohen's h, 2 asin(sqrt p1) - 2 asin(sqrt p2)."""

    h: float
    interval: tuple[float, float]  # 95 %
    p_value: float  # two-sided


def wilson_interval(successes: float, total: float, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval of a share, which stays within 0 and 1.

    Raises:
      UserError: nothing was counted.

    Examples:
      >>> low, high = wilson_interval(8, 10)
      >>> round(low, 4), round(high, 4)
      (0.4902, 0.9433)
    """
    if total <= 0 or not 0 <= successes <= total:
        raise UserError(f"{successes} of {total} is no share; count at least one text, and no more than all")
    share, unit = successes / total, z * z / total
    middle, half = share + unit / 2, z * np.sqrt(share * (1 - share) / total + unit / (4 * total))
    return float(max(0.0, (middle - half) / (1 + unit))), float(min(1.0, (middle + half) / (1 + unit)))


def effect_size(first: float, second: float) -> float:
    """Return Cohen's h of two shares.

    Examples:
      >>> round(effect_size(0.72, 0.31), 3)
      0.845
    """
    return float(_angle(first) - _angle(second))


def sample_test(successes: tuple[int, int], totals: tuple[int, int]) -> Comparison:
    """Compare two shares with every text as a replicate: right for texts that people wrote.

    The pooled z test, or Fisher's exact one where a cell is below 5. Of texts that a model wrote it answers
    another question, whether these two models differ; see `refit_test`.

    Raises:
      UserError: a population is empty.
    """
    from scipy import stats

    (a, b), (n, m) = successes, totals
    if min(n, m) < 1:
        raise UserError(f"a population has no text ({n} and {m} were counted); give both at least one")
    if min(a, b, n - a, m - b) < 5:
        p_value = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    else:
        pooled = (a + b) / (n + m)
        z = (a / n - b / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        p_value = 2 * stats.norm.sf(abs(z))
    h, half = effect_size(a / n, b / m), 1.959964 * np.sqrt(1 / n + 1 / m)
    return Comparison(h, (h - half, h + half), float(p_value))


def table_test(counts: Sequence[Sequence[int]]) -> float:
    """Return the p-value of the chi-square test of a table [populations, classes]; empty classes left out.

    Raises:
      UserError: a population is empty.

    Examples:
      >>> table_test([[30, 20, 50], [30, 20, 50]])
      1.0
    """
    from scipy import stats

    table = np.asarray(counts)
    if (table.sum(axis=1) == 0).any():
        raise UserError(f"a population of {table.tolist()} has no text; give each at least one")
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0


def refit_test(first: Sequence[float], second: Sequence[float], *, bootstrap: bool = True) -> Comparison:
    """Compare the shares that refitted models of two populations say, one share a model.

    Welch's t test of 2 asin(sqrt p), whose variance does not depend on p. More samples a model make each
    share exact, and no more models. Where no model of either population differs from the others, as counts of
    a few texts may not, the variance is not known: the interval is all that h can be, and the p-value 1.

    Args:
      first: shares that the models of one population say, [R].
      second: of the other, [S].
      bootstrap: the models of a population were tuned on resamples of ONE corpus. Their variance is then
        that of the estimate itself, which more refits do not make smaller: dividing it by R would take the
        corpus for all that the population ever wrote. False: each model has texts of its own.

    Raises:
      UserError: a population of fewer than two models.

    Examples:
      >>> refit_test([0.70, 0.74, 0.72], [0.30, 0.33, 0.31]).p_value < 0.001
      True
    """
    from scipy import stats

    for shares in (first, second):
        if len(shares) < 2:
            raise UserError(
                f"a population has {len(shares)} refitted models; the variance between models needs two or "
                "more: give more seeds"
            )
    angles = _angle(first), _angle(second)
    h = float(angles[0].mean() - angles[1].mean())
    # A mean of R refits of one corpus varies as the corpus does, and by 1 / R as a refit does.
    of_mean = [x.var(ddof=1) * (1 / len(x) + bootstrap) for x in angles]
    variance = sum(of_mean)
    if variance < 1e-18:  # the same to the last digit
        return Comparison(h, (-np.pi, np.pi), 1.0)
    freedom = variance**2 / sum(v**2 / (len(x) - 1) for v, x in zip(of_mean, angles, strict=True))
    error = np.sqrt(variance)
    half = float(stats.t.ppf(0.975, freedom) * error)
    return Comparison(h, (h - half, h + half), float(2 * stats.t.sf(abs(h) / error, freedom)))


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """Return q-values: reporting those below r keeps the expected share of false ones below r.

    A p-value of NaN, of a test that could not be made, counts as none, and its q-value is NaN.

    Examples:
      >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5]).round(4)
      array([0.04  , 0.0533, 0.0533, 0.5   ])
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)[: np.sum(~np.isnan(p))]  # NaN is sorted last
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q = np.full(len(p), np.nan)
    q[order] = np.minimum(1, np.minimum.accumulate(scaled[::-1])[::-1])
    return q


def correct_shares(observed: Sequence[float], confusion: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the true shares of classes [C], given those that an imperfect scorer says.

    The scorer's says_j = sum_i true_i confusion[i, j]; the nearest distribution to the solution is returned,
    since noise can put the solution itself outside of the simplex.

    Args:
      observed: shares of what the scorer says, [C].
      confusion: row i: shares of what it says of texts whose class is i, counted or relative, [C, C].

    Raises:
      UserError: shapes that do not fit, a class without a text, or a scorer that tells two classes nothing
        apart.

    Examples:
      >>> correct_shares([0.62, 0.38], [[0.9, 0.1], [0.2, 0.8]]).round(3)
      array([0.6, 0.4])
    """
    seen, matrix = np.asarray(observed, np.float64), np.asarray(confusion, np.float64)
    if matrix.shape != (len(seen), len(seen)) or (matrix.sum(axis=1) <= 0).any():
        raise UserError(
            f"a confusion matrix of shape {matrix.shape} does not fit {len(seen)} shares; give a row of "
            "counts "
            "for every class, each with at least one text"
        )
    matrix = matrix / matrix.sum(axis=1, keepdims=True)
    if np.linalg.cond(matrix) > 1e6:
        raise UserError(
            f"the scorer says the same of two classes ({matrix.round(3).tolist()}), so its shares cannot be "
            "corrected; take another scorer, or fewer classes"
        )
    return _on_simplex(np.linalg.solve(matrix.T, seen / seen.sum()))


def _on_simplex(x: np.ndarray) -> np.ndarray:
    """Return the nearest distribution (Duchi et al. 2008)."""
    ordered = np.sort(x)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(x) + 1)
    return np.maximum(x - excess[np.flatnonzero(ordered > excess)[-1]], 0)


def _angle(share) -> np.ndarray:
    return 2 * np.arcsin(np.sqrt(np.asarray(share, np.float64)))
