"""What a model says of labels before it has read an input, and how well that is known."""

from dataclasses import dataclass

import numpy as np

from jaxllm.errors import UserError


@dataclass(frozen=True)
class Prior:
    """Label probabilities averaged over inputs. Printed, it is one line that a person reads.

    Attributes:
      log_probs_Y: float64 [Y], normalised over the labels.
      standard_error_Y: float64 [Y], of the probabilities; 0 for a single input, whose spread is not known.
      count: inputs averaged over.
      rejection_rate: of inputs that a model wrote, the share thrown away because they did not end.
      mean_length: tokens of an input; NaN where nobody counted.
      transductive: it was estimated from the inputs that are to be classified.
    """

    log_probs_Y: np.ndarray
    standard_error_Y: np.ndarray
    count: int
    rejection_rate: float = 0.0
    mean_length: float = float("nan")
    transductive: bool = False

    def __str__(self) -> str:
        """Return the estimate with its error, and what it was made from."""
        pairs = zip(np.exp(self.log_probs_Y), self.standard_error_Y, strict=True)
        shown = ", ".join(f"{p:.3f} ± {error:.3f}" for p, error in pairs)
        return (
            f"{shown} ({self.count} inputs of {self.mean_length:.1f} tokens, {self.rejection_rate:.0%} "
            f"rejected{', transductive' if self.transductive else ''})"
        )


def uniform_prior(labels: int) -> Prior:
    """Return the prior that prefers no label.

    Examples:
      >>> print(uniform_prior(2))
      0.500 ± 0.000, 0.500 ± 0.000 (0 inputs of nan tokens, 0% rejected)
    """
    return Prior(np.full(labels, -np.log(labels)), np.zeros(labels), 0)


def estimate_prior(log_probs_LY: np.ndarray, *, normalise_each: bool = False, **about) -> Prior:
    """Average the label probabilities of L inputs, then normalise over the labels.

    The estimator of generative calibration (Jiang et al. 2023, arXiv 2310.10266) for inputs that the model
    wrote itself, of contextual calibration (Zhao et al. 2021, arXiv 2102.09690) for inputs without content,
    of batch calibration (Zhou et al. 2023, arXiv 2309.17249) for the inputs to be classified. The paper
    averages probabilities as the model gives them: an input after which no label is likely counts little.

    The standard error is that of a ratio of means, to first order in 1 / L.

    Args:
      log_probs_LY: log p(label | input), over the whole vocabulary, in nats.
      normalise_each: normalise each input's probabilities over the labels first, so that all count the same.
      about: fields of `Prior`: rejection_rate, mean_length, transductive.

    Raises:
      UserError: no input, fewer than two labels, or log-probabilities that are NaN or above 0.

    Examples:
      >>> print(estimate_prior(np.log([[0.6, 0.2], [0.06, 0.14]]), mean_length=7.0))
      0.660 ± 0.144, 0.340 ± 0.144 (2 inputs of 7.0 tokens, 0% rejected)
      >>> print(estimate_prior(np.log([[0.6, 0.2], [0.06, 0.14]]), normalise_each=True))
      0.525 ± 0.225, 0.475 ± 0.225 (2 inputs of nan tokens, 0% rejected)
    """
    log_probs_LY = check_log_probs(log_probs_LY)
    if normalise_each:
        log_probs_LY = log_softmax(log_probs_LY)
    probs_LY = np.exp(log_probs_LY - log_probs_LY.max())  # a common factor, which the ratio cancels
    L, mean_Y = len(probs_LY), probs_LY.mean(axis=0)
    prior_Y = mean_Y / mean_Y.sum()
    error_LY = (probs_LY - prior_Y * probs_LY.sum(axis=1, keepdims=True)) / mean_Y.sum()
    spread_Y = error_LY.std(axis=0, ddof=1) if L > 1 else np.zeros(len(prior_Y))
    with np.errstate(divide="ignore"):
        log_probs_Y = np.log(mean_Y) - np.log(mean_Y.sum())
    return Prior(log_probs_Y, spread_Y / np.sqrt(L), L, **about)


def log_target(target_Y, labels: int) -> np.ndarray:
    """Return the logarithm of a target marginal, uniform where it is None.

    Raises:
      UserError: not a positive share for each label, or shares that do not sum to 1.
    """
    if target_Y is None:
        return np.full(labels, -np.log(labels))
    target_Y = np.asarray(target_Y, np.float64)
    if target_Y.shape != (labels,) or not (target_Y > 0).all() or abs(target_Y.sum() - 1) > 1e-6:
        raise UserError(
            f"the target marginal is {target_Y.tolist()}; give {labels} positive shares that sum to 1"
        )
    return np.log(target_Y)


def check_log_probs(log_probs_NY: np.ndarray) -> np.ndarray:
    """Return log-probabilities of labels as float64 [N, Y].

    Raises:
      UserError: no row, fewer than two labels, NaN or values above 0, or a row in which no label is possible.
    """
    values = np.asarray(log_probs_NY, np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise UserError(
            f"log-probabilities of labels have the shape {values.shape}; give [inputs, labels], with one "
            "input and two labels at least"
        )
    if np.isnan(values).any() or values.max() > 1e-3:
        raise UserError("log-probabilities of labels hold NaN or values above 0; give log p(label | input)")
    if np.isneginf(values.max(axis=1)).any():
        raise UserError("an input leaves no label possible (all are -inf); leave it out")
    return values


def log_softmax(scores_NY: np.ndarray) -> np.ndarray:
    """Return scores normalised over the last axis."""
    return scores_NY - np.logaddexp.reduce(scores_NY, axis=-1, keepdims=True)
