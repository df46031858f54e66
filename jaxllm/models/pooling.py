"""One vector a text, of the hidden states of its tokens."""

import jax
import jax.numpy as jnp


def mean_pool(hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Return the mean over each text's tokens, float32 [B, D]; 0 where it has none.

    Args:
      hidden_BTD: what `trunk` returned; for padded texts with `segment_ids=mask_BT`.
      mask_BT: 0 or False at padding.

    Examples:
      >>> mean_pool(jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[1, 1, 0]])).tolist()
      [[1.0, 2.0]]
    """
    weights_BT1 = mask_BT.astype(jnp.float32)[..., None]
    total_BD = jnp.sum(hidden_BTD.astype(jnp.float32) * weights_BT1, axis=1)
    return total_BD / jnp.maximum(jnp.sum(weights_BT1, axis=1), 1.0)
