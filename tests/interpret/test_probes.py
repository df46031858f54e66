"""Probes against normal equations and scikit-learn, similarity against scipy, places on the globe."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxllm.errors import UserError
from jaxllm.interpret import (
    degrees,
    fit_mlp,
    fit_ridge,
    great_circle_km,
    held_out_groups,
    r_squared,
    similarity,
    unit_vectors,
)

DRAW = np.random.default_rng(0)
LATENT = DRAW.normal(size=(400, 3))
Y = LATENT / np.linalg.norm(LATENT, axis=1, keepdims=True)
X = (Y @ DRAW.normal(size=(3, 12)) + 0.3 * DRAW.normal(size=(400, 12))) * DRAW.uniform(0.1, 90, 12) + 5.0


@pytest.mark.parametrize("penalty", [1e-3, 0.5])
def test_ridge_is_the_normal_equations_on_standardised_features(penalty):
    """float64 against float64 through an augmented least squares; the probe is rounded to float32: 1e-5."""
    fit = fit_ridge(X, Y, penalties=(penalty,))
    z = (X - X.mean(0)) / X.std(0)
    shrink = np.hstack([np.sqrt(400 * penalty) * np.eye(12), np.zeros((12, 1))])
    rows = np.vstack([np.hstack([z, np.ones((400, 1))]), shrink])
    w = np.linalg.lstsq(rows, np.vstack([Y, np.zeros((12, 3))]), rcond=None)[0]
    np.testing.assert_allclose(fit.probe(X), np.hstack([z, np.ones((400, 1))]) @ w, atol=1e-5)
    assert fit.penalty == penalty and np.isnan(fit.error)
    sklearn = pytest.importorskip("sklearn.linear_model")
    theirs = sklearn.Ridge(alpha=penalty * 400).fit(z, Y).predict(z)
    np.testing.assert_allclose(fit.probe(X), theirs, atol=1e-5)


def test_the_penalty_is_chosen_on_folds_that_hold_whole_groups_out():
    groups = np.repeat(np.arange(20), 20)
    noisy = np.hstack([X, DRAW.normal(size=(400, 290))])  # more features than some folds would bear
    penalties = (1e-6, 1.0)
    fit = fit_ridge(noisy, Y, penalties=penalties, groups=groups, num_folds=5, seed=3)
    folds = (np.random.default_rng([3, 42]).permutation(20) % 5)[groups]
    errors = []
    for penalty in penalties:
        error = 0.0
        z = (noisy - noisy.mean(0)) / noisy.std(0)
        for fold in range(5):
            z1 = np.hstack([z, np.ones((400, 1))])
            mine, shrink = z1[folds != fold], penalty * np.sum(folds != fold) * np.eye(303)
            shrink[-1, -1] = 0
            w = np.linalg.solve(mine.T @ mine + shrink, mine.T @ Y[folds != fold])
            error += np.sum((z1[folds == fold] @ w - Y[folds == fold]) ** 2)
        errors.append(error / np.sum((Y - Y.mean(0)) ** 2))
    assert fit.penalty == penalties[int(np.argmin(errors))] == 1.0
    np.testing.assert_allclose(fit.error, min(errors), rtol=1e-6)


def test_a_constant_feature_and_scales_change_nothing():
    more = np.hstack([X * 1e3, np.full((400, 1), 7.0)])
    one, other = (fit_ridge(x, Y, penalties=(0.01,)).probe(x) for x in (X, more))
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_networks_of_all_layers_learn_at_once_what_a_line_cannot():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(2, 512, 4)).astype(np.float32) * 30 + 10
    y = np.abs((x[1, :, :1] - 10) / 30)  # of layer 1's first feature; layer 0 knows nothing of it
    probe = fit_mlp(x, y, hidden=16, epochs=60, batch_size=64, learning_rate=1e-2)
    layers = [jax.tree.map(lambda w, i=i: w[i], probe) for i in range(2)]
    scores = [r_squared(layer(x[i]), y) for i, layer in enumerate(layers)]
    linear = r_squared(fit_ridge(x[1], y, penalties=(1e-3,)).probe(x[1]), y)
    assert scores[1] > 0.95 and scores[0] < 0.6 and linear < 0.1


def test_places_go_to_vectors_and_back_and_distances_are_haversines():
    draw = np.random.default_rng(2)
    lat, lng = draw.uniform(-90, 90, (2, 50)), draw.uniform(-180, 180, (2, 50))
    vectors = unit_vectors(lat, lng)
    for back, given in zip(degrees(vectors), (lat, lng), strict=True):
        np.testing.assert_allclose(back, given, atol=1e-9)
    (a, b), (c, d) = np.radians(lat), np.radians(lng)
    half = np.sin((b - a) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin((d - c) / 2) ** 2
    np.testing.assert_allclose(great_circle_km(*vectors), 2 * 6371.0088 * np.arcsin(np.sqrt(half)), rtol=1e-7)
    edge = great_circle_km(unit_vectors(0, 179.5), unit_vectors(0, -179.5))
    np.testing.assert_allclose(edge, 6371.0088 * np.radians(1), rtol=1e-9)
    np.testing.assert_allclose(great_circle_km(vectors[0], -3 * vectors[0]), 6371.0088 * np.pi, rtol=1e-9)


def test_groups_are_held_out_whole():
    groups = np.random.default_rng(3).choice(30, 500, p=np.arange(1, 31) / 465)
    held = held_out_groups(groups, share=0.25, seed=1)
    assert not set(groups[held]) & set(groups[~held]) and 0.15 < held.mean() < 0.35
    assert (held_out_groups(groups, share=0.25, seed=2) != held).any()
    assert held_out_groups(["a", "b"], share=0.01).sum() == 1


def by_scipy(x, distances, measure):
    upper = np.triu_indices(len(x), 1)
    if measure == "pearson":
        return stats.pearsonr(np.corrcoef(x)[upper], -distances[upper])[0]
    similar = stats.spearmanr(x.T)[0]
    if measure == "spearman":
        return stats.spearmanr(similar[upper], -distances[upper])[0]
    if measure == "kendall":
        rows = [np.delete(np.arange(len(x)), i) for i in range(len(x))]
        return np.mean([stats.kendalltau(similar[i, r], -distances[i, r])[0] for i, r in enumerate(rows)])
    centred = np.eye(len(x)) - 1 / len(x)
    one, other = centred @ x @ x.T @ centred, centred @ (-0.5 * distances**2) @ centred
    return np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("measure", ["spearman", "pearson", "kendall", "cka"])
def test_similarity_is_scipys_and_its_null_is_that_of_permuted_rows(measure):
    x = X[:25] / X[:400].std(0)
    distances = np.linalg.norm(Y[:25, None] - Y[:25], axis=-1)
    found = similarity(x, distances, measure=measure, permutations=19, seed=4)
    np.testing.assert_allclose(found.score, by_scipy(x, distances, measure), atol=1e-6)
    draw = np.random.default_rng([4, 43])
    for null in found.null[:3]:
        order = draw.permutation(25)
        np.testing.assert_allclose(null, by_scipy(x, distances[np.ix_(order, order)], measure), atol=1e-6)
    assert found.p_value == 0.05 and found.score > found.null.max()


def test_bad_input_is_told_in_one_sentence():
    with pytest.raises(UserError, match="all rows are of one group, 'Chad'"):
        held_out_groups(["Chad", "Chad"])
    with pytest.raises(UserError, match="share is 1.5"):
        held_out_groups("ab", share=1.5)
    with pytest.raises(UserError, match="a latitude beyond -90 to 90"):
        unit_vectors([91.0], [0.0])
    with pytest.raises(UserError, match="a coordinate that is no number"):
        unit_vectors([float("nan")], [0.0])
    with pytest.raises(UserError, match=r"states have shape \(400, 12\) and targets \(399, 3\)"):
        fit_ridge(X, Y[1:])
    with pytest.raises(UserError, match=r"penalties are \[0.0\]; give numbers above 0"):
        fit_ridge(X, Y, penalties=(0,))
    with pytest.raises(UserError, match="1 groups in 4 folds"):
        fit_ridge(X, Y, groups=np.zeros(400))
    with pytest.raises(UserError, match="hold infinities or NaN"):
        fit_ridge(np.where(X > 50, np.nan, X), Y)
    with pytest.raises(UserError, match="x_LND has 2 axes"):
        fit_mlp(X, Y)
    with pytest.raises(UserError, match="unknown measure 'cosine'"):
        similarity(X, np.zeros((400, 400)), measure="cosine")
    with pytest.raises(UserError, match="N from 3 on"):
        similarity(X[:2], np.zeros((2, 2)))
    with pytest.raises(UserError, match="a state is constant"):
        similarity(np.ones((3, 2)), np.zeros((3, 3)))
