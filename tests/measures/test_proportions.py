"""Tests of shares agree with scipy and statsmodels' formulas; only honest replicates keep the error rate."""

import numpy as np
import pytest
from scipy import stats

from jaxllm.errors import UserError
from jaxllm.measures import (
    benjamini_hochberg,
    correct_shares,
    effect_size,
    refit_test,
    sample_test,
    table_test,
    wilson_interval,
)


def test_wilson_and_benjamini_hochberg_are_scipys():
    for k, n in [(0, 5), (3, 7), (50, 60), (60, 60)]:
        wanted = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        assert wilson_interval(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    p = np.random.default_rng(0).random(40) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    without = np.insert(p, [3, 40], np.nan)  # of tests that could not be made
    found = benjamini_hochberg(without)
    np.testing.assert_allclose(found[~np.isnan(without)], stats.false_discovery_control(p))
    assert np.isnan(found).tolist() == np.isnan(without).tolist()
    for bad in ((1, 0), (3, 2)):
        with pytest.raises(UserError, match="is no share"):
            wilson_interval(*bad)


def test_a_sample_test_is_the_z_test_and_fishers_where_cells_are_small():
    z = (0.4 - 0.25) / np.sqrt(0.325 * 0.675 * (1 / 200 + 1 / 200))
    found = sample_test((80, 50), (200, 200))
    assert found.p_value == pytest.approx(2 * stats.norm.sf(z)) and found.h == effect_size(0.4, 0.25) > 0
    assert sample_test((3, 9), (10, 10)).p_value == stats.fisher_exact([[3, 7], [9, 1]]).pvalue
    assert table_test([[30, 20, 0], [10, 40, 0]]) == pytest.approx(
        stats.chi2_contingency([[30, 20], [10, 40]], correction=False).pvalue
    )
    with pytest.raises(UserError, match="has no text"):
        sample_test((0, 1), (0, 5))


def test_refits_taken_as_independent_are_welchs_test():
    draw = np.random.default_rng(1)
    one, other = draw.uniform(0.4, 0.6, 5), draw.uniform(0.5, 0.7, 6)
    angle = lambda x: 2 * np.arcsin(np.sqrt(x))
    wanted = stats.ttest_ind(angle(one), angle(other), equal_var=False)
    found = refit_test(one, other, bootstrap=False)
    assert found.p_value == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx(wanted.confidence_interval())
    for constant in ([0.5] * 3, [0.55] * 3):
        found = refit_test([0.5] * 3, constant)  # whose variance nobody knows
        assert found.p_value == 1 and found.interval == (-np.pi, np.pi)
    with pytest.raises(UserError, match="1 refitted models"):
        refit_test([0.5], [0.4, 0.5])


def test_only_bootstrapped_refits_keep_the_error_rate_of_one_corpus():
    """The estimate is a corpus' mean; a refit resamples it. Two corpora of one population, 400 times."""
    draw = np.random.default_rng(2)
    wrong = {True: 0, False: 0}
    for _ in range(400):
        said = []
        for _ in range(2):
            corpus = draw.random(200) < 0.5
            said.append([corpus[draw.integers(200, size=200)].mean() for _ in range(6)])
        for bootstrap in wrong:
            wrong[bootstrap] += refit_test(*said, bootstrap=bootstrap).p_value < 0.05
    assert wrong[True] <= 30 and wrong[False] >= 100  # 20 are nominal


def test_a_known_confusion_is_undone():
    matrix = np.array([[80, 15, 5], [10, 80, 10], [5, 25, 70]])
    true = np.array([0.5, 0.2, 0.3])
    seen = true @ (matrix / matrix.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(correct_shares(seen, matrix), true, atol=1e-12)
    outside = correct_shares([0.99, 0.005, 0.005], matrix)
    assert outside.min() >= 0 and outside.sum() == pytest.approx(1)
    with pytest.raises(UserError, match="says the same of two classes"):
        correct_shares([0.5, 0.5], [[1, 1], [2, 2]])
    with pytest.raises(UserError, match="does not fit 2 shares"):
        correct_shares([0.5, 0.5], matrix)
