"""Decoding by two models: pure functions of their distributions of the next token.

A step takes (log p [B, V], log q [M, B, V], state) and returns log p~ [B, V], normalised: p is the model's
distribution, q are those of M models beside it, and state holds what sets the method's strength, a number or
one a row ([B]), so that rows of one batch may differ and another strength compiles nothing anew. A token that
p excludes (log p = -inf) stays excluded. `combine_models` puts a step into decoding, `beam_search` and
`score.score_combined_choices` take it too: all three see the same p~.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError, unknown

Step = Callable[[jax.Array, jax.Array, Any], jax.Array]


class Suppression(NamedTuple):
    """How strongly `Suppress` acts; `suppression` makes one and checks its values."""

    strength: Any  # lambda >= 0; of the decay "hard" the threshold tau
    floor: Any  # epsilon in [0, 1]: what a factor is at least, and after the threshold of "hard"
    temperature: Any  # of q, which is renormalised


def suppression(strength: Any = 50.0, floor: Any = 0.01, temperature: Any = 1.0) -> Suppression:
    """Return the state of a `Suppress`, of numbers or lists of one number a row.

    The defaults are those of Self-Debias' code.

    Raises:
      UserError: a strength outside 0 to 1e6, a floor outside 0 to 1, a temperature outside 1e-6 to 1e6.
    """
    _check("strength", strength, 0, 1e6)
    _check("floor", floor, 0, 1)
    _check("temperature", temperature, 1e-6, 1e6)
    return Suppression(*(np.asarray(x, np.float32) for x in (strength, floor, temperature)))


def _check(name: str, values: Any, least: float, most: float) -> None:
    values = np.asarray(values, np.float64)
    wrong = values[~((values >= least) & (values <= most))]
    if wrong.size:
        raise UserError(f"{name} is {wrong[0]:g}; it must be {least:g} to {most:g}")


def _log_exponential(delta, strength, floor):
    return jnp.maximum(jnp.log(floor), -strength * delta)


def _log_linear(delta, strength, floor):
    return jnp.log(jnp.maximum(floor, 1 - strength * delta))


def _log_power(delta, strength, floor):
    del floor
    return -strength * jnp.log1p(delta)


def _log_hard(delta, strength, floor):
    return jnp.where(delta > strength, jnp.log(floor), 0.0)


# (delta = max(0, q - p) [B, V], strength [B, 1], floor [B, 1]) -> log of the factor, 0 where delta is 0.
DECAYS = {
    "exponential": _log_exponential,  # max(floor, exp(-strength delta))
    "linear": _log_linear,  # max(floor, 1 - strength delta)
    "power": _log_power,  # (1 + delta) ** -strength, without a floor
    "hard": _log_hard,  # floor if delta > strength else 1
}


@dataclass(frozen=True)
class Suppress:
    """Multiply each token's probability by a decay of max(0, q - p), and renormalise.

    Of several q the largest probability counts. Where q is p, p~ is p exactly. With a q of the same
    model after a prefix that asks for the unwanted text this is Self-Debias (Schick et al., arXiv 2103.00453,
    equations 2 to 4). With a q of an expert of the unwanted text it is a reconstruction of EXPOSED (arXiv
    2405.19299), whose own formula is not public.

    Raises:
      UserError: a decay that there is not.

    Examples:
      >>> p, q = jnp.array([[0.5, 0.3, 0.2]]), jnp.array([[[0.1, 0.3, 0.6]]])
      >>> new = jnp.exp(Suppress()(jnp.log(p), jnp.log(q), suppression(strength=5.0)))
      >>> [f"{x:.3f}" for x in new[0]]
      ['0.605', '0.363', '0.033']
    """

    decay: str = "exponential"

    def __post_init__(self):
        if self.decay not in DECAYS:
            raise unknown("decay", self.decay, list(DECAYS))

    def __call__(self, log_p_BV: jax.Array, log_q_MBV: jax.Array, state: Suppression) -> jax.Array:
        """Return log p~ [B, V]."""
        strength_B1, floor_B1, temperature_B1 = (_column(x, log_p_BV) for x in state)
        cooled_MBV = jax.nn.log_softmax(log_q_MBV / temperature_B1, axis=-1)
        log_q_BV = jnp.where(temperature_B1 == 1, log_q_MBV, cooled_MBV).max(axis=0)
        delta_BV = jnp.maximum(0.0, jnp.exp(log_q_BV) - jnp.exp(log_p_BV))
        log_factor_BV = DECAYS[self.decay](delta_BV, strength_B1, floor_B1)
        return _renormalized(log_p_BV, log_factor_BV)


def _renormalized(log_p_BV, log_factor_BV):
    """Return log of p times factors of at most 1, renormalised; p exactly where all factors are 1."""
    removed_B1 = jnp.sum(-jnp.exp(log_p_BV) * jnp.expm1(log_factor_BV), axis=-1, keepdims=True)
    left_BV = log_p_BV + log_factor_BV
    # 1 - removed cancels where most is removed; the logsumexp is not exactly 0 where nothing is.
    log_left_B1 = jnp.where(
        removed_B1 < 0.5,
        jnp.log1p(-jnp.minimum(removed_B1, 0.5)),
        jax.nn.logsumexp(left_BV, axis=-1, keepdims=True),
    )
    # Several q may together exceed p everywhere, and a floor of 0 then leaves nothing: p stays.
    empty_B1 = log_left_B1 == -jnp.inf
    return jnp.where(empty_B1, log_p_BV, left_BV - jnp.where(empty_B1, 0.0, log_left_B1))


def steer(log_p_BV: jax.Array, log_q_MBV: jax.Array, strength: Any) -> jax.Array:
    """Return DExperts' log p~: towards an expert, away from an anti-expert (arXiv 2105.03023, equation 2).

    Args:
      log_p_BV: truncate it to its nucleus first (`keep_top_p`), as DExperts does.
      log_q_MBV: [expert, anti-expert]; or an anti-expert alone, whose expert is then the model itself:
        (1 + strength) log p - strength log q.
      strength: alpha, 2.0 in the paper.

    Raises:
      UserError: more than two models beside.
    """
    if len(log_q_MBV) > 2:
        raise UserError(f"{len(log_q_MBV)} distributions to steer by; give an anti-expert, or (expert, anti)")
    expert_BV = log_q_MBV[0] if len(log_q_MBV) == 2 else log_p_BV
    return _shifted(log_p_BV, expert_BV - log_q_MBV[-1], strength)


def contrast(log_p_BV: jax.Array, log_q_MBV: jax.Array, strength: Any) -> jax.Array:
    """Return contrastive decoding's log p - strength log q, normalised (arXiv 2210.15097, equation 4).

    Args:
      log_p_BV: cut it to the plausible tokens first (`keep_min_p(0.1)`).
      log_q_MBV: the amateur's; of several the largest counts.
      strength: 1 in the paper; 0 changes nothing.
    """
    return _shifted(log_p_BV, -log_q_MBV.max(axis=0), strength)


def _shifted(log_p_BV, shift_BV, strength):
    shifted_BV = log_p_BV + _column(strength, log_p_BV) * shift_BV
    return jax.nn.log_softmax(jnp.where(log_p_BV == -jnp.inf, -jnp.inf, shifted_BV), axis=-1)


def _column(x, log_p_BV):
    """Return a number, or one a row, as [B, 1]."""
    return jnp.broadcast_to(jnp.asarray(x, jnp.float32), log_p_BV.shape[:1])[:, None]
