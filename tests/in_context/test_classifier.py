"""Scores come of the labelled vectors and of the item itself; reductions and calibration do what they say."""

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.in_context import InContextClassifier, Reasoner, ReasonerConfig, fit_reduction, init, logits
from jaxllm.in_context.platt import fit_platt

CONFIG = ReasonerConfig(features=4, max_pairs=40, num_layers=2, embed_dim=16, num_heads=2)


@pytest.fixture(scope="module")
def reasoner():
    params = init(CONFIG, jax.random.key(0))
    # Drawn small, an untrained module says nearly the same of everything.
    return Reasoner(CONFIG, jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params))


def data(rows=24, width=7, seed=0, classes=2):
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(rows, width)) * np.linspace(3, 0.5, width)
    return vectors, (np.argsort(vectors[:, 0]) % classes).tolist()


def test_the_cache_says_what_the_whole_sequence_says(reasoner):
    """Each item by itself at the end of its pairs, uncached, over the same orders."""
    vectors, labels = data(30)
    classifier = InContextClassifier(reasoner, vectors[:24], labels[:24], permutations=2, shrinkage=0.3)
    found = classifier.log_odds(vectors[24:])
    features = fit_reduction(vectors[:24], 4, shrinkage=0.3)
    orders = [np.arange(24), np.random.default_rng(0).permutation(24)]
    x_BKF = np.stack([np.concatenate([features(vectors[:24])[order], features(vectors[at : at + 1])])
                      for at in range(24, 30) for order in orders])  # fmt: skip
    y_BK = np.stack([np.append(np.array(labels[:24])[order], 0.0) for _ in range(6) for order in orders])
    z_B = np.asarray(logits(CONFIG, reasoner.params, x_BKF, y_BK))[:, -1]
    np.testing.assert_allclose(found[:, 0], z_B.reshape(6, 2).mean(axis=1), atol=2e-5)
    assert np.ptp(found) > 1e-3


def test_a_score_depends_on_no_other_item_to_the_last_bit(reasoner):
    vectors, labels = data(90)
    classifier = InContextClassifier(reasoner, vectors[:24], labels[:24])
    whole = classifier.log_probs(vectors[24:])  # 66: more than one call
    np.testing.assert_array_equal(classifier.log_probs(vectors[24:26]), whole[:2])
    np.testing.assert_array_equal(classifier.log_probs(vectors[:23:-1])[::-1], whole)
    again = InContextClassifier(reasoner, vectors[:24], [f"label {label}" for label in labels[:24]])
    np.testing.assert_array_equal(again.log_probs(vectors[24:]), whole)
    flipped = InContextClassifier(reasoner, vectors[:24], [1 - label for label in labels[:24]])
    assert (flipped.log_probs(vectors[24:]) != whole).all()


def test_more_orders_spread_less(reasoner):
    vectors, labels = data(40)

    def spread(permutations):
        draw, found = np.random.default_rng(5), []
        for _ in range(6):
            order = draw.permutation(24)
            some = InContextClassifier(
                reasoner, vectors[order], [labels[i] for i in order], permutations=permutations,
                seed=int(draw.integers(100)),
            )  # fmt: skip
            found.append(some.log_odds(vectors[24:]))
        return np.std(found, axis=0).mean()

    assert 0 < spread(8) < 0.8 * spread(1)


def test_many_classes_are_one_against_the_rest_each(reasoner):
    vectors, labels = data(30, classes=3)
    names = [("x", "y", "z")[label] for label in labels]
    classifier = InContextClassifier(reasoner, vectors[:24], names[:24], permutations=1)
    log_probs = classifier.log_probs(vectors[24:])
    assert classifier.classes == ("x", "y", "z") and log_probs.shape == (6, 3)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-12)
    for column, name in enumerate(classifier.classes):
        alone = InContextClassifier(
            reasoner, vectors[:24], [one == name for one in names[:24]], permutations=1
        )
        np.testing.assert_allclose(
            alone.log_odds(vectors[24:])[:, 0], classifier.log_odds(vectors[24:])[:, column], atol=1e-5
        )
    assert classifier.predict(vectors[24:]) == [classifier.classes[i] for i in log_probs.argmax(axis=1)]


def test_shares_shift_the_log_odds_and_calibration_is_fitted_to_held_out_examples(reasoner):
    vectors, _ = data(30)
    labels = ["rare"] * 6 + ["common"] * 18
    plain = InContextClassifier(reasoner, vectors[:24], labels)
    shifted = InContextClassifier(reasoner, vectors[:24], labels, shares=(0.5, 0.5))
    difference = np.diff(shifted.log_probs(vectors[24:]) - plain.log_probs(vectors[24:]), axis=1)
    np.testing.assert_allclose(difference, np.log(18 / 6) * np.ones((6, 1)), atol=1e-9)
    assert plain.classes == ("common", "rare")
    calibrated = InContextClassifier(reasoner, vectors[:24], labels, calibrate=True)
    features = fit_reduction(vectors[:24], 4, shrinkage=0.1)(vectors[:24])
    held_out, names = np.zeros(24), np.array(labels)
    fold_K = np.random.default_rng([0, 1]).permutation(np.arange(24) % 8)
    for fold in range(8):
        held = fold_K == fold
        # Features are those of all: the reduction has seen no label.
        kept = InContextClassifier(reasoner, features[~held], names[~held].tolist(), components=0)
        held_out[held] = kept.log_odds(features[held])[:, 0]
    (slope,), (shift,) = calibrated._slopes
    np.testing.assert_allclose((slope, shift), fit_platt(held_out, names == "rare"), rtol=1e-4)
    np.testing.assert_allclose(
        calibrated.log_odds(vectors[24:]), plain.log_odds(vectors[24:]) * slope + shift, rtol=1e-12
    )


def test_no_item_gets_no_score(reasoner):
    """`embed_in_prompt` gives vectors [0, D] of no query."""
    vectors, labels = data(classes=3)
    shares = dict(shares=(0.2, 0.3, 0.5))
    for given, options in ((vectors, shares), (vectors[:, :4], dict(components=0))):
        classifier = InContextClassifier(reasoner, given, labels, permutations=1, **options)
        none = given[:0]
        assert classifier.log_odds(none).shape == classifier.log_probs(none).shape == (0, 3)
        assert classifier.log_probs(none).dtype == np.float64 and classifier.predict(none) == []


def test_platt_scaling_is_the_minimum_that_scipy_finds():
    from scipy.optimize import minimize

    draw = np.random.default_rng(0)
    z = draw.normal(size=40) * 5
    y = (draw.random(40) < 1 / (1 + np.exp(-0.3 * z + 1))).astype(int)

    def loss(w):
        margin = np.where(y, 1, -1) * (w[0] * z + w[1])
        return np.logaddexp(0, -margin).sum() + 0.5 * ((w[0] - 1) ** 2 + w[1] ** 2)

    np.testing.assert_allclose(fit_platt(z, y), minimize(loss, [1, 0]).x, atol=1e-4)
    assert fit_platt(1e6 * z, y)[0] == pytest.approx(0, abs=1e-3)  # far from the start


def test_reductions_are_scikit_learns_whitened_components():
    decomposition = pytest.importorskip("sklearn.decomposition")
    vectors, _ = data(20, 6)
    wanted = decomposition.PCA(3, whiten=True).fit(vectors).transform(vectors)
    found = fit_reduction(vectors, 3)(vectors)
    signs = np.sign((found * wanted).sum(axis=0))
    np.testing.assert_allclose(found * signs, wanted, atol=1e-5)
    half, own = fit_reduction(vectors, 3, shrinkage=0.5)(vectors), vectors - vectors.mean(axis=0)
    variances = np.linalg.eigvalsh(np.cov(own.T))[::-1][:3]
    shrunk = variances / (0.5 * variances + 0.5 * variances.mean())
    np.testing.assert_allclose(half.var(axis=0, ddof=1), shrunk, rtol=1e-5)
    np.testing.assert_allclose(fit_reduction(vectors, 3, shrinkage=1)(vectors).var(axis=0, ddof=1),
                               variances / variances.mean(), rtol=1e-5)  # fmt: skip


def test_bad_input_is_told_in_a_sentence(reasoner):
    vectors, labels = data()
    broken = vectors.copy()
    broken[3, 2] = np.nan
    make = lambda *given, **options: InContextClassifier(reasoner, *given, **options)  # noqa: E731
    for given, options, said in [
        ((vectors, [1] * 24), {}, r"24 labels name \[1\]; give examples of two classes or more"),
        ((vectors[:0], []), {}, r"0 labels name \[\]; give examples of two classes"),
        ((vectors, labels[:-1]), {}, "24 vectors and 23 labels; give one label a vector"),
        ((vectors[:4], [0, 1, 0, 1]), {}, "4 labelled vectors vary in 3 directions, and 4 components"),
        ((vectors[:, :3], labels), {}, "vectors have 3 numbers, and 4 components are asked for"),
        ((data(41)[0], data(41)[1]), {}, "41 labelled pairs, and the module was trained on 40 at most"),
        ((broken, labels), {}, "vector 3 holds a number that is not finite"),
        ((vectors[0], labels), {}, r"vectors are float64\[7\]; give numbers \[N, D\]"),
        ((vectors, labels), dict(components=0), "vectors have 7 numbers and the module 4 features"),
        ((vectors, labels), dict(components=5), "components is 5; give 0 to the module's 4 features"),
        ((vectors, labels), dict(components=-1), "components is -1; give 0 to"),
        ((vectors, labels), dict(shrinkage=2), "shrinkage is 2; give a number from 0"),
        ((vectors, labels), dict(shares=(1.0,)), r"shares are \(1.0,\), of 1 classes; the labels have 2"),
        ((vectors, labels), dict(permutations=0), "permutations is 0; give 1"),
        ((np.ones((9, 7)), labels[:9]), {}, "vary in 0 directions, and 4 components"),
        ((np.eye(7)[[0, 1] * 4], [0, 1] * 4), dict(shrinkage=0), "vary in 1 directions"),
    ]:
        with pytest.raises(UserError, match=said):
            make(*given, **options)
    with pytest.raises(UserError, match="0 labelled vectors vary in 0 directions, and 4 components"):
        fit_reduction(vectors[:0], 4)
    with pytest.raises(UserError, match="vectors have 5 numbers, and those that were fitted 7"):
        make(vectors, labels).log_probs(vectors[:, :5])
