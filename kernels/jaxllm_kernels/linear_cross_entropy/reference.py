"""Cross-entropy of a linear head with its full logits: the oracle."""

import jax
import jax.numpy as jnp


def token_log_probs(hidden_BTD, weights, labels_BT, *, vocab_axis=1):
    """Return (log p(label), logsumexp of the logits), each float32 (or wider) [B, T]."""
    weights_DV = weights if vocab_axis == 1 else weights.T
    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    logits_BTV = jnp.einsum(
        "btd,dv->btv", hidden_BTD, weights_DV.astype(hidden_BTD.dtype), preferred_element_type=wide
    )
    lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    label_BT = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)[..., 0]
    return label_BT - lse_BT, lse_BT


def linear_cross_entropy(
    hidden_BTD, weights, labels_BT, *, token_weights_BT=None, vocab_axis=1, z_loss=0.0
):
    """Return (sum of weight * -log p, z_loss * sum of weight * logsumexp**2)."""
    log_probs_BT, lse_BT = token_log_probs(hidden_BTD, weights, labels_BT, vocab_axis=vocab_axis)
    w_BT = jnp.ones_like(lse_BT) if token_weights_BT is None else token_weights_BT
    return -jnp.sum(w_BT * log_probs_BT), z_loss * jnp.sum(w_BT * jnp.square(lse_BT))
