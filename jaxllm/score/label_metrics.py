"""How well label log-probabilities agree with the true labels."""

import itertools

import numpy as np

from jaxllm.errors import UserError


def accuracy(log_probs_NY: np.ndarray, gold_N: np.ndarray) -> float:
    """Return the share of inputs whose likeliest label is the true one."""
    log_probs_NY, gold_N = _checked(log_probs_NY, gold_N)
    return float((log_probs_NY.argmax(axis=1) == gold_N).mean())


def macro_f1(log_probs_NY: np.ndarray, gold_N: np.ndarray) -> float:
    """Return F1 averaged over the labels that are true or predicted somewhere.

    Examples:
      >>> round(macro_f1(np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), [0, 1, 1]), 4)
      0.6667
    """
    log_probs_NY, gold_N = _checked(log_probs_NY, gold_N)
    predicted_N = log_probs_NY.argmax(axis=1)
    scores = []
    for label in np.union1d(gold_N, predicted_N):
        right = ((predicted_N == label) & (gold_N == label)).sum()
        scores.append(2 * right / ((predicted_N == label).sum() + (gold_N == label).sum()))
    return float(np.mean(scores))


def macro_auroc(log_probs_NY: np.ndarray, gold_N: np.ndarray) -> float:
    """Return the area under the ROC curve averaged over pairs of labels, scored by the difference of both.

    A constant added to a label's scores changes no pair's order: dividing by a prior leaves it as it is. High
    here and low in macro-F1 is what label shift looks like. Pairs of which one label is never true are left
    out.

    Raises:
      UserError: only one label is true anywhere.

    Examples:
      >>> macro_auroc(np.log([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]), [0, 0, 1])
      0.5
    """
    log_probs_NY, gold_N = _checked(log_probs_NY, gold_N)
    present = np.unique(gold_N)
    if len(present) < 2:
        raise UserError("all inputs have one true label; an area under the ROC curve needs two")
    areas = []
    for i, j in itertools.combinations(present, 2):
        # Of logits of both labels alone, i's less j's; equal ones count half.
        own, other = (log_probs_NY[gold_N == y, i] - log_probs_NY[gold_N == y, j] for y in (i, j))
        below = np.searchsorted(np.sort(other), own, side="left")
        up_to = np.searchsorted(np.sort(other), own, side="right")
        areas.append((below + up_to).mean() / 2 / len(other))
    return float(np.mean(areas))


def _checked(log_probs_NY, gold_N):
    log_probs_NY, gold_N = np.asarray(log_probs_NY, np.float64), np.asarray(gold_N)
    if log_probs_NY.ndim != 2 or gold_N.shape != log_probs_NY.shape[:1] or not len(gold_N):
        raise UserError(
            f"scores have the shape {log_probs_NY.shape} and true labels {gold_N.shape}; give [N, labels] "
            "and [N]"
        )
    wrong = int(np.isnan(log_probs_NY).any(axis=1).sum())
    if wrong:
        raise UserError(
            f"scores hold NaN, of {wrong} of {len(gold_N)} inputs; they must be numbers: leave those inputs "
            "out, or look for what is not finite in the model"
        )
    if gold_N.min() < 0 or gold_N.max() >= log_probs_NY.shape[1]:
        raise UserError(f"a true label is {gold_N.max()}; there are labels 0 to {log_probs_NY.shape[1] - 1}")
    return log_probs_NY, gold_N
