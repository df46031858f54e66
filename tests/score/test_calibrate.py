"""Calibrators are the formulas; dividing by a prior repairs label shift, and changes no order of a pair."""

import itertools

import numpy as np
import pytest

from jaxllm import score
from jaxllm.errors import UserError


def random_log_probs(n, labels, seed=0):
    """Return log-probabilities of labels; their sum, a part of the vocabulary's, varies from row to row."""
    random = np.random.default_rng(seed)
    return np.log(random.dirichlet(np.ones(labels + 1), n)[:, :labels]) - 3 * random.random((n, 1))


def brute_auroc(scores, gold):
    """Return macro-AUROC by comparing every two inputs."""
    areas = []
    for i, j in itertools.combinations(range(scores.shape[1]), 2):
        d = scores[:, i] - scores[:, j]
        pairs = [(a, b) for a in d[gold == i] for b in d[gold == j]]
        areas.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    return np.mean(areas)


@pytest.mark.parametrize("labels", [2, 5])
def test_macro_auroc_is_the_same_before_and_after_whatever_the_prior(labels):
    log_probs, random = random_log_probs(60, labels), np.random.default_rng(1)
    gold = random.integers(0, labels, 60)
    before = score.macro_auroc(score.keep_as_given(log_probs), gold)
    assert before == pytest.approx(brute_auroc(log_probs, gold), abs=1e-12)
    for _ in range(20):
        prior = score.estimate_prior(np.log(random.dirichlet(np.full(labels, 0.3) + 0.01, 1)))
        after = score.divide_by_prior(log_probs, prior, random.dirichlet(np.ones(labels)))
        assert score.macro_auroc(after, gold) == pytest.approx(before, abs=1e-12)
        np.testing.assert_allclose(np.exp(after).sum(axis=1), 1, atol=1e-12)


def test_each_calibrator_is_its_formula():
    log_probs = random_log_probs(40, 3)
    p = np.exp(log_probs)
    normal = p / p.sum(axis=1, keepdims=True)
    inputs = random_log_probs(7, 3, 5)
    prior = score.estimate_prior(inputs)
    mean = np.exp(inputs).mean(axis=0) / np.exp(inputs).mean(axis=0).sum()
    np.testing.assert_allclose(np.exp(prior.log_probs_Y), mean, rtol=1e-12)

    def normalised(x):
        return x / x.sum(axis=1, keepdims=True)

    target = np.array([0.5, 0.2, 0.3])
    expected = {
        "icl": normal,
        "generative": normalised(normal / mean),
        "contextual": normalised(normal / mean),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(np.exp(score.CALIBRATORS[name](log_probs, prior)), values, rtol=1e-10)
    np.testing.assert_allclose(
        np.exp(score.divide_by_prior(log_probs, prior, target)),
        normalised(normal / mean * target),
        rtol=1e-10,
    )
    # Batch calibration: the mean of normalised probabilities.
    batch = score.estimate_prior(log_probs, normalise_each=True, transductive=True)
    np.testing.assert_allclose(np.exp(batch.log_probs_Y), normal.mean(axis=0), rtol=1e-10)
    assert "transductive" in str(batch)
    # A noisy channel: log p(x | y) far from 0, its posterior under the target.
    channel = 40 * log_probs - 200
    got = score.CALIBRATORS["channel"](channel, score.uniform_prior(3), target)
    posterior = np.exp(channel - channel.max(axis=1, keepdims=True)) * target
    np.testing.assert_allclose(np.exp(got), normalised(posterior), rtol=1e-8, atol=1e-300)


def test_the_standard_error_is_the_spread_of_estimates():
    world = random_log_probs(20000, 3)
    estimates = [score.estimate_prior(block) for block in world.reshape(200, 100, 3)]
    spread = np.std([np.exp(one.log_probs_Y) for one in estimates], axis=0)
    said = np.mean([one.standard_error_Y for one in estimates], axis=0)
    np.testing.assert_allclose(said, spread, rtol=0.15)


def test_prototypes_find_shifted_clusters_and_name_them():
    random = np.random.default_rng(0)
    gold = np.repeat([0, 1, 2], 100)
    logits = np.eye(3)[gold] * 3 + random.normal(size=(300, 3)) * 0.4 + np.array([5.0, 0, 0])
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert score.macro_f1(log_probs, gold) < 0.4
    prototypes = score.fit_prototypes(log_probs)
    assert score.macro_f1(score.CALIBRATORS["prototypical"](log_probs, prototypes), gold) > 0.95
    np.testing.assert_allclose(np.exp(prototypes.log_weights_Y), 1 / 3, atol=0.03)


def test_macro_f1_is_by_hand():
    gold = np.array([0, 0, 0, 1, 1, 2])
    log_probs = np.log(np.eye(3)[[0, 0, 1, 1, 1, 1]] * 0.8 + 0.05)
    f1 = [2 * 2 / (2 + 3), 2 * 2 / (4 + 2), 0.0]
    assert score.macro_f1(log_probs, gold) == pytest.approx(np.mean(f1))
    assert score.accuracy(log_probs, gold) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: score.estimate_prior(np.zeros((0, 2))), r"the shape \(0, 2\); give \[inputs, labels\]"),
        (lambda: score.estimate_prior([[np.nan, -1.0]]), "hold NaN or values above 0"),
        (lambda: score.estimate_prior([[-np.inf, -np.inf]]), "leaves no label possible"),
        (
            lambda: score.divide_by_prior(np.zeros((1, 2)), score.uniform_prior(3)),
            "the prior has 3 labels and",
        ),
        (lambda: score.divide_by_prior(np.zeros((1, 2)), score.uniform_prior(2), [0.5, 0.6]), "sum to 1"),
        (
            lambda: score.divide_by_prior(np.zeros((1, 2)), score.estimate_prior([[-np.inf, 0.0]])),
            "impossible",
        ),
        (lambda: score.divide_by_prior([[-np.inf] * 2], score.uniform_prior(2)), "leaves no label possible"),
        (lambda: score.divide_by_prior([[np.nan, 0.0]], score.uniform_prior(2)), "hold NaN or values above"),
        (lambda: score.fit_prototypes([[-1.0, -1.0]]), "1 inputs for 2 labels"),
        (lambda: score.macro_auroc(np.zeros((2, 2)), [1, 1]), "all inputs have one true label"),
        (lambda: score.accuracy([[np.nan, -1.0], [-1.0, 0.0]], [0, 1]), "scores hold NaN, of 1 of 2 inputs;"),
        (lambda: score.macro_f1(np.full((3, 2), np.nan), [0, 0, 0]), "scores hold NaN, of 3 of 3 inputs;"),
        (lambda: score.macro_auroc([[np.nan, -1.0], [-1.0, 0.0]], [0, 1]), "scores hold NaN"),
        (lambda: score.macro_f1(np.zeros((2, 2)), [1, 2]), "a true label is 2; there are labels 0 to 1"),
    ],
)
def test_bad_values_are_named(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
