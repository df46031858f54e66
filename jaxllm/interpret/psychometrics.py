"""How well a model's surprisal predicts how long people look at words.

Psychometric predictive power as Aoyama and Wilcox 2025 (arXiv 2502.18802) and Wilcox et al. 2020 (arXiv
2006.01912) measure it: two linear regressions of reading times, one without and one with surprisal, and what
the second gains on words that neither was fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jaxllm.errors import UserError, unknown

FOLDS = ("texts", "words")


@dataclass(frozen=True, eq=False)
class PredictivePower:
    """What surprisal adds to a regression of reading times."""

    delta_log_likelihood: float  # nats a word, held out: the mean of per_word
    standard_error: float  # of that mean, words taken as independent
    slopes: (
        np.ndarray
    )  # [lags + 1] time per unit of surprisal of the word, the one before ..., all rows fitted
    rows: np.ndarray = field(repr=False)  # int [n]: the words that were used
    per_word: np.ndarray = field(repr=False)  # [n]


def psychometric_power(
    times: np.ndarray,
    surprisal: np.ndarray,
    controls: np.ndarray,
    texts: np.ndarray,
    *,
    lags: int,
    folds: Literal["texts", "words"] = "texts",
    num_folds: int = 10,
    rows: np.ndarray | None = None,
    seed: int = 0,
) -> PredictivePower:
    """Return the gain in held-out log-likelihood of reading times that surprisal brings.

    Ordinary least squares of the times on the controls of a word and of the `lags` words before it, and of
    the same with their surprisal. Held-out words are scored under a normal distribution around the
    prediction, its standard deviation the residual standard error of the training folds.

    Args:
      times: reading times of N words in reading order, float [N]; NaN or 0 where there is none.
      surprisal: of the same words, [N]; NaN where there is none.
      controls: what else predicts the times, such as log frequency and length, [N, P].
      texts: the text that each word belongs to, [N]; a word's history ends where its text begins.
      lags: words before the word that also predict its time: 4 for self-paced reading, 2 for eye movements.
      folds: "texts" holds whole texts out; "words" words at random, as the paper does, whose neighbours, with
        their overlapping histories, are trained on: its intervals are too narrow.
      num_folds: as many parts; with fewer texts, one a text.
      rows: bool [N], the words to use, such as those that all checkpoints have (`usable_rows`); None: all
        that these values allow.
      seed: of the random folds.

    Raises:
      UserError: arrays of unequal length, one text to hold out, fewer words than a regression needs.

    Examples:
      >>> draw = np.random.default_rng(0)
      >>> surprisal, length = draw.exponential(8, 2000), draw.integers(1, 10, 2000)
      >>> times = 300 + 2 * surprisal + 5 * length + draw.normal(0, 20, 2000)
      >>> power = psychometric_power(times, surprisal, length[:, None], np.arange(2000) // 200, lags=0)
      >>> power.slopes.round(), bool(power.delta_log_likelihood > 5 * power.standard_error)
      (array([2.]), True)
    """
    if folds not in FOLDS:
        raise unknown("folds", folds, FOLDS)
    controls = np.asarray(controls, np.float64)
    controls = controls[:, None] if controls.ndim == 1 else controls
    predictors_NP = np.column_stack([controls, surprisal]).astype(np.float64)
    times, texts = np.asarray(times, np.float64), np.asarray(texts)
    usable = usable_rows(times, predictors_NP, texts, lags)
    if rows is not None:
        usable &= np.asarray(rows, bool)
    index = np.flatnonzero(usable)
    y, texts = times[index], texts[index]
    base = _design(controls, index, lags)
    full = np.column_stack([base, _design(predictors_NP[:, -1:], index, lags)[:, 1:]])
    fold_n = _fold_of(texts, folds, num_folds, seed)
    parts = np.unique(fold_n)
    smallest = len(y) - max((np.sum(fold_n == part) for part in parts), default=0)
    if len(parts) < 2 or smallest <= full.shape[1]:
        raise UserError(
            f"{len(y)} words in {len(np.unique(texts))} texts can be used, in {len(parts)} folds; the "
            f"regression of {full.shape[1]} coefficients needs two folds and more words than that: give more "
            "words, fewer lags, or folds='words'"
        )
    per_word = np.empty(len(y))
    for part in parts:
        held = fold_n == part
        gained = [_log_density(X[~held], y[~held], X[held], y[held]) for X in (full, base)]
        per_word[held] = gained[0] - gained[1]
    slopes = np.linalg.lstsq(full, y, rcond=None)[0][base.shape[1] :]
    error = float(per_word.std(ddof=1) / np.sqrt(len(y)))
    return PredictivePower(float(per_word.mean()), error, slopes, index, per_word)


def usable_rows(times: np.ndarray, predictors: np.ndarray, texts: np.ndarray, lags: int) -> np.ndarray:
    """Return which words have a time above 0, and values for themselves and for the `lags` words before.

    Args:
      times: float [N].
      predictors: [N, P]; those of several checkpoints side by side give the words that all share.
      texts: [N]; the words of a text are neighbours.
      lags: length of the history that must be there.

    Examples:
      >>> usable_rows([300, 0, 310, 320], [[1.0], [2.0], [3.0], [4.0]], [1, 1, 1, 2], lags=1)
      array([False, False,  True, False])
    """
    times, texts = np.asarray(times, np.float64), np.asarray(texts)
    predictors = np.asarray(predictors, np.float64)
    if not len(times) == len(predictors) == len(texts):
        raise UserError(
            f"{len(times)} times, {len(predictors)} rows of predictors and {len(texts)} texts were given; "
            "they must be one a word"
        )
    known = np.isfinite(predictors).all(axis=1)
    usable = known & np.isfinite(times) & (times > 0)
    for lag in range(1, lags + 1):
        before = np.zeros(len(times), bool)
        before[lag:] = known[:-lag] & (texts[lag:] == texts[:-lag])
        usable &= before
    return usable


def bootstrap_interval(
    per_word: np.ndarray,
    blocks: Sequence | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of a mean over words, from means of resampled blocks.

    Args:
      per_word: [n].
      blocks: what each word belongs to, [n]: its text or sentence, whose words share what the regression
        misses. None takes words as independent.
      draws: resamples.
      level: of the interval.
      seed: of the draws.

    Examples:
      >>> low, high = bootstrap_interval(np.random.default_rng(0).normal(1, 1, 400))
      >>> 0.85 < low < 1 < high < 1.15
      True
    """
    per_word = np.asarray(per_word, np.float64)
    block_n = np.arange(len(per_word)) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    sums, counts = np.bincount(block_n, weights=per_word), np.bincount(block_n)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        chosen = draw.integers(len(sums), size=len(sums))
        means.append(sums[chosen].sum() / counts[chosen].sum())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _design(values_NP: np.ndarray, index_n: np.ndarray, lags: int) -> np.ndarray:
    """Return [n, 1 + P (lags + 1)]: an intercept, then each lag's values."""
    lagged = [values_NP[index_n - lag] for lag in range(lags + 1)]
    return np.column_stack([np.ones(len(index_n)), *lagged])


def _fold_of(texts_n: np.ndarray, folds: str, num_folds: int, seed: int) -> np.ndarray:
    if folds == "texts":
        return np.unique(texts_n, return_inverse=True)[1] % num_folds
    return np.random.default_rng(seed).permutation(len(texts_n)) % num_folds


def _log_density(X_train, y_train, X_held, y_held) -> np.ndarray:
    """Return the log density of held-out times under the regression of the others."""
    weights, *_ = np.linalg.lstsq(X_train, y_train, rcond=None)
    residual = y_train - X_train @ weights
    variance = residual @ residual / (len(y_train) - X_train.shape[1])
    return -0.5 * (np.log(2 * np.pi * variance) + (y_held - X_held @ weights) ** 2 / variance)
