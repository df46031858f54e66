"""Calibrators of label probabilities, behind one signature: (log p(y | x), prior) -> log p'(y | x).

A prompt distorts which labels a model expects more than how it tells inputs apart: label shift, which
dividing by the model's own prior repairs. The methods differ in what the prior was estimated from:

  name          prior
  icl           none: the model's own probabilities
  contextual    inputs without content (`few_shot.content_free_inputs`)
  domain        random words of the inputs' domain (`few_shot.random_word_inputs`)
  pmi           one prompt that says nothing (`few_shot.FewShotTask.neutral_query`)
  batch         the inputs to be classified (transductive)
  generative    inputs that the model writes after the prompt (`sample_inputs`)
  channel       uniform, on log p(x | y) in place of log p(y | x) (`channel_log_probs`)
  prototypical  clusters of label probabilities (`fit_prototypes`)

All but the last two are one function of the prior, so that their macro-AUROC is the same.
"""

from collections.abc import Callable

import numpy as np

from jaxllm.errors import UserError
from jaxllm.score.prior import Prior, check_log_probs, log_softmax, log_target
from jaxllm.score.prototypes import assign_prototypes


def keep_as_given(log_probs_NY: np.ndarray, prior=None, target_Y=None) -> np.ndarray:
    """Normalise over the labels and change nothing else: in-context learning as it is."""
    del prior, target_Y
    return log_softmax(check_log_probs(log_probs_NY))


def divide_by_prior(log_probs_NY: np.ndarray, prior: Prior, target_Y=None) -> np.ndarray:
    """Return log p'(y | x) = log p(y | x) - log prior(y) + log target(y), normalised: float64 [N, Y].

    Args:
      log_probs_NY: log p(y | x), or log p(x | y) with the uniform prior.
      prior: what to divide by.
      target_Y: the share of each label among the inputs to be classified; None: all are equal.

    Raises:
      UserError: a prior or a target of another number of labels, a target that is not positive shares, a
        prior that calls a label impossible, or what `prior.check_log_probs` refuses.

    Examples:
      >>> from jaxllm.score import estimate_prior
      >>> prior = estimate_prior(np.log([[0.9, 0.1]]))
      >>> np.exp(divide_by_prior(np.log([[0.8, 0.2]]), prior)).round(3)
      array([[0.308, 0.692]])
      >>> np.exp(divide_by_prior(np.log([[0.8, 0.2]]), prior, target_Y=[0.9, 0.1])).round(3)
      array([[0.8, 0.2]])
    """
    scores_NY = check_log_probs(log_probs_NY)
    labels = scores_NY.shape[-1]
    if len(prior.log_probs_Y) != labels:
        raise UserError(
            f"the prior has {len(prior.log_probs_Y)} labels and the inputs {labels}; give one prompt's"
        )
    if not np.isfinite(prior.log_probs_Y).all():
        raise UserError("the prior calls a label impossible; estimate it from more inputs")
    return log_softmax(log_softmax(scores_NY) - prior.log_probs_Y + log_target(target_Y, labels))


CALIBRATORS: dict[str, Callable] = {
    "icl": keep_as_given,
    "contextual": divide_by_prior,
    "domain": divide_by_prior,
    "pmi": divide_by_prior,
    "batch": divide_by_prior,
    "generative": divide_by_prior,
    "channel": divide_by_prior,
    "prototypical": assign_prototypes,
}
