"""Policy gradients as losses of log-probabilities: REINFORCE, and PPO's clipped ratio.

REINFORCE: Williams, 1992. PPO: Schulman et al., arXiv 1707.06347, equation 7. A value head, and so a learned
baseline, is left to the caller: `generalised_advantages` takes its values.
"""

import jax
import jax.numpy as jnp


def reinforce_loss(log_probs_BT: jax.Array, advantages: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Return a loss whose gradient is minus the policy gradient: -1/B sum_i sum_t A_i log p(y_it).

    Args:
      log_probs_BT: of what was drawn, under the parameters that are trained.
      advantages: float32 [B], or [B, T]: one a token.
      mask_BT: 1 where a token was drawn.
    """
    return -jnp.sum(_each(advantages) * log_probs_BT * mask_BT) / len(log_probs_BT)


def clipped_loss(
    log_probs_BT: jax.Array,
    old_log_probs_BT: jax.Array,
    advantages: jax.Array,
    mask_BT: jax.Array,
    clip: float = 0.2,
) -> jax.Array:
    """Return -1/B sum min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = p / p_old of each token.

    Where the parameters are those that drew, its gradient is `reinforce_loss`'s.

    Args:
      log_probs_BT, advantages, mask_BT: see `reinforce_loss`.
      old_log_probs_BT: under the parameters that drew.
      clip: how far a ratio may go from 1.
    """
    ratio_BT = jnp.exp(jnp.where(mask_BT > 0, log_probs_BT - old_log_probs_BT, 0.0))
    A = _each(advantages)
    least_BT = jnp.minimum(ratio_BT * A, jnp.clip(ratio_BT, 1 - clip, 1 + clip) * A)
    return -jnp.sum(least_BT * mask_BT) / len(log_probs_BT)


def _each(advantages: jax.Array) -> jax.Array:
    return advantages[:, None] if advantages.ndim == 1 else advantages
