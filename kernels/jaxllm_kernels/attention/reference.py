"""Attention written out: the oracle, and the path on which scores can be seen and edited."""

import jax
import jax.numpy as jnp

from jaxllm_kernels.attention.visibility import visible
from jaxllm_kernels.dtypes import widened


def attention(
    query_BTHK,
    key_BSGK,
    value_BSGK,
    *,
    scale,
    causal,
    window,
    segment_ids_BT,
    mask_BTS,
    sink_H,
    with_lse,
):
    """Return (output [B, T, H, K], logsumexp [B, H, T] or None without with_lse).

    Other arguments as in `jaxllm_kernels.attention.attention`, none optional.
    """
    scores_BHTS = attention_scores(query_BTHK, key_BSGK, scale)
    allowed = visible(
        query_BTHK.shape[1],
        key_BSGK.shape[1],
        causal=causal,
        window=window,
        segment_ids_BT=segment_ids_BT,
        mask_BTS=mask_BTS,
    )
    probs_BHTS = attention_probs(scores_BHTS, allowed, sink_H)
    out_BTHK = mix(probs_BHTS, value_BSGK, query_BTHK.dtype)
    return out_BTHK, logsumexp(scores_BHTS, allowed, sink_H) if with_lse else None


def attention_scores(query_BTHK: jax.Array, key_BSGK: jax.Array, scale: float) -> jax.Array:
    """Return the scaled dot products in float32 (or wider, if the inputs are): [B, H, T, S]."""
    B, T, H, K = query_BTHK.shape
    S, G = key_BSGK.shape[1:3]
    query_BTGRK = query_BTHK.reshape(B, T, G, H // G, K)
    wide = widened(query_BTHK.dtype)
    scores = jnp.einsum("btgrk,bsgk->bgrts", query_BTGRK, key_BSGK, preferred_element_type=wide)
    return scores.reshape(B, H, T, S) * scale


def attention_probs(scores_BHTS, allowed, sink_H=None) -> jax.Array:
    """Return softmax over the allowed keys and, if there is one, the sink: [B, H, T, S].

    The sink's own share is dropped, so rows then sum to less than 1. A row that may see nothing is
    all 0, with finite gradients.

    Args:
      scores_BHTS: float32 logits.
      allowed: bool, broadcastable to the scores, or None: all.
      sink_H: one logit a head, or None for none. Zeros are softmax-1 (arXiv 2410.17174).
    """
    if allowed is not None:
        scores_BHTS = jnp.where(allowed, scores_BHTS, -jnp.inf)
    top = jnp.max(scores_BHTS, axis=-1, keepdims=True, initial=-jnp.inf)  # there may be no key
    if sink_H is not None:
        sink = sink_H.astype(scores_BHTS.dtype)[None, :, None, None]
        # The maximum must include the sink: with very negative scores exp(-max) would overflow,
        # which leaves the values right and makes the gradient NaN.
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weight = jnp.exp(scores_BHTS - top)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    if sink_H is not None:
        total = total + jnp.exp(sink - top)
    return weight / jnp.where(total == 0.0, 1.0, total)


def logsumexp(scores_BHTS, allowed, sink_H=None) -> jax.Array:
    """Return the logsumexp over the allowed keys and the sink, -inf where there are none: [B, H, T].

    Arguments as in `attention_probs`.
    """
    if sink_H is not None:
        shape = (*scores_BHTS.shape[:3], 1)
        sink = jnp.broadcast_to(sink_H.astype(scores_BHTS.dtype)[None, :, None, None], shape)
        scores_BHTS = jnp.concatenate([scores_BHTS, sink], axis=-1)
        if allowed is not None:
            allowed = jnp.broadcast_to(allowed, (*allowed.shape[:3], scores_BHTS.shape[-1] - 1))
            allowed = jnp.pad(allowed, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=True)
    if scores_BHTS.shape[-1] == 0:
        return jnp.full(scores_BHTS.shape[:-1], -jnp.inf, scores_BHTS.dtype)
    if allowed is None:
        return jax.nn.logsumexp(scores_BHTS, axis=-1)
    any_allowed = jnp.any(allowed, axis=-1)
    # Rows that see nothing are replaced before the logarithm, whose gradient there is not finite.
    safe = jnp.where(allowed, scores_BHTS, jnp.where(any_allowed[..., None], -jnp.inf, 0.0))
    return jnp.where(any_allowed, jax.nn.logsumexp(safe, axis=-1), -jnp.inf)


def mix(probs_BHTS: jax.Array, value_BSGK: jax.Array, dtype) -> jax.Array:
    """Return each head's weighted sum of values: [B, T, H, K]."""
    B, H, T, S = probs_BHTS.shape
    G, K = value_BSGK.shape[2:]
    probs_BGRTS = probs_BHTS.reshape(B, G, H // G, T, S).astype(dtype)
    mixed = jnp.einsum("bgrts,bsgk->btgrk", probs_BGRTS, value_BSGK.astype(dtype))
    return mixed.reshape(B, T, H, K)
