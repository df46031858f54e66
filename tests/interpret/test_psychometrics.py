"""Predictive power of surprisal: against statsmodels, a brute-force loop, and worlds whose truth is known."""

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.interpret import bootstrap_interval, psychometric_power, usable_rows


def world(slopes, words=1200, texts=6, seed=0):
    """Return (times, surprisal, controls, texts) of readers whose slopes at each lag are given."""
    draw = np.random.default_rng(seed)
    surprisal, controls = draw.exponential(6, words), draw.normal(size=(words, 2))
    times = 300 + controls @ [4.0, -3.0] + draw.normal(0, 15, words)
    for lag, slope in enumerate(slopes):
        times[lag:] += slope * surprisal[: words - lag]
    return times, surprisal, controls, np.repeat(np.arange(texts), words // texts)


def by_hand(times, surprisal, controls, texts, lags, fold_of):
    """Return (rows, gain of each): every word by its own loop, the normal equations solved by inverse."""
    rows = [
        i
        for i in range(len(times))
        if i >= lags
        and all(texts[i - k] == texts[i] and np.isfinite(surprisal[i - k]) for k in range(lags + 1))
        and times[i] > 0
    ]
    gains = np.zeros(len(rows))
    for fold in set(fold_of(rows)):
        for sign, with_surprisal in ((1, True), (-1, False)):
            X = []
            for i in rows:
                x = [1.0]
                for k in range(lags + 1):
                    x += [*controls[i - k], *([surprisal[i - k]] if with_surprisal else [])]
                X.append(x)
            X, y = np.array(X), times[rows]
            train = np.array(fold_of(rows)) != fold
            weights = np.linalg.inv(X[train].T @ X[train]) @ X[train].T @ y[train]
            sigma = np.sqrt(np.sum((y[train] - X[train] @ weights) ** 2) / (train.sum() - X.shape[1]))
            density = -((y - X @ weights) ** 2) / (2 * sigma**2) - np.log(sigma * np.sqrt(2 * np.pi))
            gains[~train] += sign * density[~train]
    return rows, gains


def test_equals_a_loop_over_words_with_gaps_in_the_history():
    times, surprisal, controls, texts = world([1.0, 0.5])
    surprisal[[100, 350]] = np.nan
    times[[40, 41]] = 0
    power = psychometric_power(times, surprisal, controls, texts, lags=2)
    rows, gains = by_hand(times, surprisal, controls, texts, 2, lambda rows: texts[rows])
    assert power.rows.tolist() == rows and not {100, 101, 102, 40} & set(rows) and 43 in rows
    np.testing.assert_allclose(power.per_word, gains, atol=1e-9)
    assert power.delta_log_likelihood == pytest.approx(gains.mean())


def test_planted_slopes_come_back_at_their_lags():
    power = psychometric_power(*world([1.5, 0.8, 0.0], words=6000), lags=2)
    np.testing.assert_allclose(power.slopes, [1.5, 0.8, 0.0], atol=0.12)
    assert power.delta_log_likelihood > 5 * power.standard_error


def test_surprisal_that_no_reader_feels_adds_nothing():
    gains = [psychometric_power(*world([0.0], seed=seed), lags=1).delta_log_likelihood for seed in range(20)]
    assert (
        abs(np.mean(gains)) < 0.002 and np.mean(np.array(gains) > 0) < 0.5
    )  # two coefficients too many cost a little


def test_checkpoints_share_their_words():
    times, surprisal, controls, texts = world([1.0])
    other = surprisal.copy()
    other[7] = np.nan
    shared = usable_rows(times, np.column_stack([controls, surprisal, other]), texts, 1)
    first, second = (
        psychometric_power(times, s, controls, texts, lags=1, rows=shared) for s in (surprisal, other)
    )
    assert first.rows.tolist() == second.rows.tolist() and not {7, 8} & set(first.rows.tolist())
    np.testing.assert_array_equal(first.per_word, second.per_word)


def test_folds_of_words_leak_and_folds_of_texts_do_not():
    """A baseline of the text's own level: neighbours give it away, whole texts held out do not."""
    times, surprisal, controls, texts = world([0.0], words=1200, texts=60)
    level = np.random.default_rng(1).normal(0, 40, 60)
    surprisal = texts + 0.0  # a number a text: it says nothing of a text never seen
    leaky, honest = (
        psychometric_power(
            times + level[texts], surprisal, np.column_stack([controls, texts == 3]), texts, lags=0, folds=f
        )
        for f in ("words", "texts")
    )
    assert leaky.delta_log_likelihood > honest.delta_log_likelihood
    assert psychometric_power(times, surprisal, controls, texts, lags=0, folds="words").rows.size == 1200


def test_a_bootstrap_over_blocks_knows_that_words_of_a_block_agree():
    draw = np.random.default_rng(0)
    blocks = np.repeat(np.arange(40), 25)
    per_word = draw.normal(size=40)[blocks] + 0.1 * draw.normal(size=1000)
    (low, high), (narrow_low, narrow_high) = (
        bootstrap_interval(per_word, blocks),
        bootstrap_interval(per_word),
    )
    assert high - low == pytest.approx(2 * 1.96 * per_word[::25].std() / np.sqrt(40), rel=0.15)
    assert narrow_high - narrow_low == pytest.approx(2 * 1.96 * per_word.std() / np.sqrt(1000), rel=0.15)


def test_bad_input_is_told_before_a_regression():
    times, surprisal, controls, texts = world([1.0], words=60, texts=2)
    with pytest.raises(UserError, match="60 times, 59 rows of predictors and 60 texts"):
        psychometric_power(times, surprisal[1:], controls[1:], texts, lags=1)
    with pytest.raises(UserError, match="60 words in 1 texts can be used, in 1 folds"):
        psychometric_power(times, surprisal, controls, np.zeros(60), lags=0)
    with pytest.raises(UserError, match="more words than that: give more words, fewer lags"):
        psychometric_power(times, surprisal, controls, texts, lags=12)
    with pytest.raises(UserError, match="unknown folds 'story'"):
        psychometric_power(times, surprisal, controls, texts, lags=1, folds="story")


@pytest.mark.torch
def test_coefficients_and_likelihood_are_those_of_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    times, surprisal, controls, texts = world([1.0, 0.4], words=400, texts=4)
    power = psychometric_power(times, surprisal, controls, texts, lags=1)
    i = power.rows
    lagged = np.column_stack([controls[i], controls[i - 1], surprisal[i], surprisal[i - 1]])
    fitted = sm.OLS(times[i], sm.add_constant(lagged)).fit()
    np.testing.assert_allclose(power.slopes, fitted.params[-2:], rtol=1e-8)
    held = texts[i] == 2
    for columns, sign in ((slice(None), 1), (slice(0, 4), -1)):
        X = sm.add_constant(lagged[:, columns])
        trained = sm.OLS(times[i][~held], X[~held]).fit()
        sigma = np.sqrt(trained.mse_resid)
        from scipy.stats import norm

        density = norm.logpdf(times[i][held], trained.predict(X[held]), sigma)
        total = sign * density if sign == 1 else total + sign * density  # noqa: F821
    np.testing.assert_allclose(power.per_word[held], total, atol=1e-9)
