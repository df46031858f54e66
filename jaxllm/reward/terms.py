"""Rewards as weighted sums of terms, each standardised within the batch, so that a weight means the same."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.reward.advantages import standardised

Term = Callable[[Sequence[Any]], np.ndarray]  # samples of a batch -> a value of each, float [B]


class Rewarded(NamedTuple):
    """What a batch of samples got."""

    rewards_B: np.ndarray
    means: dict[str, float]  # of each term, before it is standardised


class Reward(NamedTuple):
    """r = sum_k w_k standardised(term_k), over the samples of a batch.

    Examples:
      >>> lengths = Reward({"long": (1.0, lambda samples: np.array([len(one) for one in samples]))})
      >>> rewards, means = lengths([[1], [1, 2, 3]])
      >>> rewards.round(3).tolist(), means
      ([-1.0, 1.0], {'long': 2.0})
    """

    terms: Mapping[str, tuple[float, Term]]  # name -> (weight, term)

    def __call__(self, samples: Sequence[Any]) -> Rewarded:
        """Return the rewards of a batch.

        Raises:
          UserError: a term gives something else than a finite number a sample.
        """
        total, means = np.zeros(len(samples)), {}
        for name, (weight, term) in self.terms.items():
            values = np.asarray(term(samples), np.float64)
            if values.shape != (len(samples),) or not np.isfinite(values).all():
                raise UserError(
                    f"the term '{name}' of {len(samples)} samples gave values of shape {values.shape}, "
                    f"{int(np.isfinite(values).sum())} of them finite; give a finite number a sample"
                )
            total += weight * standardised(values)
            means[name] = float(values.mean())
        return Rewarded(total, means)


def diversity(samples: Sequence[Sequence[Any]], n: int = 4) -> np.ndarray:
    """Return minus the largest share of a sample's n-grams that another of the batch has too, [B].

    Examples:
      >>> diversity([[1, 2, 3], [1, 2, 9], [7, 8]], n=2).tolist()
      [-0.5, -0.5, 0.0]
    """
    grams = [Counter(tuple(one[i : i + n]) for i in range(len(one) - n + 1)) for one in samples]
    holders: dict[tuple, list[int]] = {}
    for row, own in enumerate(grams):
        for gram in own:
            holders.setdefault(gram, []).append(row)
    found = []
    for row, own in enumerate(grams):
        shared: Counter[int] = Counter()
        for gram, count in own.items():
            for other in holders[gram]:
                shared[other] += count
        shared.pop(row, None)
        found.append(-max(shared.values(), default=0) / max(1, sum(own.values())))
    return np.array(found)


def head_gradients(
    hidden_BTD: jax.Array, logits_BTC: jax.Array, labels_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Return each sample's gradient of cross-entropy by a linear head's weights and bias, [B, D + 1, C].

    In closed form, 1/N_i sum_t [h_t, 1] (p_t - onehot(y_t))^T: no backward pass a sample.

    Args:
      hidden_BTD: what the head multiplies.
      logits_BTC: what it says.
      labels_BT: the classes; any value where the mask is 0.
      mask_BT: 1 at positions that carry a label.
    """
    C = logits_BTC.shape[-1]
    error_BTC = jax.nn.softmax(logits_BTC, axis=-1) - jax.nn.one_hot(labels_BT, C, dtype=jnp.float32)
    error_BTC = error_BTC * mask_BT[..., None]
    ones_BT1 = jnp.ones_like(hidden_BTD[..., :1])
    sum_BDC = jnp.einsum("btd,btc->bdc", jnp.concatenate([hidden_BTD, ones_BT1], axis=-1), error_BTC)
    return sum_BDC / jnp.maximum(mask_BT.sum(axis=1), 1)[:, None, None]


def agreement(gradients_BDC: np.ndarray, wanted_DC: np.ndarray) -> np.ndarray:
    """Return the cosine of each sample's gradient with a wanted one, [B]; 0 where either is 0."""
    own_BN, wanted_N = np.reshape(gradients_BDC, (len(gradients_BDC), -1)), np.ravel(wanted_DC)
    norms_B = np.linalg.norm(own_BN, axis=1) * np.linalg.norm(wanted_N)
    return np.divide(own_BN @ wanted_N, norms_B, out=np.zeros(len(own_BN)), where=norms_B > 0)
