"""Prototypical calibration: cluster the label probabilities of inputs, and take each cluster for a label."""

from dataclasses import dataclass

import numpy as np

from jaxllm.errors import UserError
from jaxllm.score.prior import check_log_probs, log_softmax, log_target

_FLOOR = 1e-3  # of a cluster's variance, in nats squared


@dataclass(frozen=True)
class Prototypes:
    """A mixture of Gaussians over centred label log-probabilities; cluster y is label y.

    Attributes:
      log_weights_Y: float64 [Y], each cluster's share.
      means_YF: float64 [Y, Y], each cluster's centre.
      variances_YF: float64 [Y, Y], of each feature.
      log_likelihood: nats an input.
      transductive: fitted to the inputs that are to be classified.
    """

    log_weights_Y: np.ndarray
    means_YF: np.ndarray
    variances_YF: np.ndarray
    log_likelihood: float
    transductive: bool = False


def fit_prototypes(
    log_probs_NY: np.ndarray, *, starts: int = 10, steps: int = 100, seed: int = 0, transductive: bool = False
) -> Prototypes:
    """Cluster the label probabilities of unlabelled inputs into as many clusters as labels.

    Han et al. 2023, arXiv 2205.10183: a Gaussian mixture by expectation-maximisation, the likeliest of
    several starts; clusters are matched to labels so that the sum of the centres' log-probabilities is
    largest.

    Args:
      log_probs_NY: log p(label | input) of at least as many inputs as labels.
      starts: how often to begin from other random inputs.
      steps: of expectation-maximisation.
      seed: of the starts.
      transductive: say so where these are the inputs to be classified.

    Raises:
      UserError: fewer inputs than labels.

    Examples:
      >>> prototypes = fit_prototypes(np.log([[0.9, 0.1], [0.88, 0.12], [0.7, 0.3], [0.72, 0.28]]))
      >>> np.exp(assign_prototypes(np.log([[0.7, 0.3]]), prototypes)).round(2)  # the lower of both clusters
      array([[0., 1.]])
    """
    x_NF = _features(check_log_probs(log_probs_NY))
    N, Y = x_NF.shape
    if N < Y:
        raise UserError(f"{N} inputs for {Y} labels; prototypes need an input a label at least")
    random = np.random.default_rng(seed)
    best = max((_fit(x_NF, random, steps) for _ in range(starts)), key=lambda one: one.log_likelihood)
    from scipy.optimize import linear_sum_assignment

    clusters, labels = linear_sum_assignment(log_softmax(best.means_YF), maximize=True)
    order = clusters[np.argsort(labels)]
    return Prototypes(
        best.log_weights_Y[order], best.means_YF[order], best.variances_YF[order], best.log_likelihood,
        transductive,
    )  # fmt: skip


def assign_prototypes(log_probs_NY: np.ndarray, prior: Prototypes, target_Y=None) -> np.ndarray:
    """Return the log-probability that an input is in each label's cluster: float64 [N, Y].

    Args:
      log_probs_NY: log p(label | input).
      prior: from `fit_prototypes`.
      target_Y: shares in place of the clusters' own; None keeps those.
    """
    x_NF = _features(check_log_probs(log_probs_NY))
    log_weights_Y = prior.log_weights_Y if target_Y is None else log_target(target_Y, x_NF.shape[1])
    return log_softmax(_log_densities(x_NF, prior.means_YF, prior.variances_YF) + log_weights_Y)


def _features(log_probs_NY):
    """Return label log-probabilities less their mean: two inputs differ in what they say of labels alone."""
    floored = np.maximum(log_softmax(log_probs_NY), -100.0)
    return floored - floored.mean(axis=1, keepdims=True)


def _fit(x_NF, random, steps) -> Prototypes:
    N, Y = x_NF.shape
    means_YF = x_NF[random.choice(N, Y, replace=False)]
    variances_YF = np.tile(x_NF.var(axis=0) + _FLOOR, (Y, 1))
    log_weights_Y = np.full(Y, -np.log(Y))
    for _ in range(steps):
        joint_NY = _log_densities(x_NF, means_YF, variances_YF) + log_weights_Y
        share_NY = np.exp(log_softmax(joint_NY))
        total_Y = share_NY.sum(axis=0) + 1e-9
        means_YF = share_NY.T @ x_NF / total_Y[:, None]
        variances_YF = share_NY.T @ x_NF**2 / total_Y[:, None] - means_YF**2
        variances_YF = np.maximum(variances_YF, 0) + _FLOOR
        log_weights_Y = np.log(total_Y / total_Y.sum())
    joint_NY = _log_densities(x_NF, means_YF, variances_YF) + log_weights_Y
    return Prototypes(
        log_weights_Y, means_YF, variances_YF, float(np.logaddexp.reduce(joint_NY, axis=1).mean())
    )


def _log_densities(x_NF, means_YF, variances_YF):
    away_NYF = (x_NF[:, None] - means_YF) ** 2 / variances_YF
    return -0.5 * (away_NYF + np.log(2 * np.pi * variances_YF)).sum(axis=2)
