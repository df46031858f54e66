"""Dropout (Srivastava et al. 2014): of activations, and of attention's probabilities."""

import functools

import jax
import jax.numpy as jnp
from jaxllm_kernels import attention as kernel

_QUERIES = 256  # whose probabilities are in memory at once


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each number with probability `rate` and divide the others by 1 - rate; without a key return x."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def fold_in(key: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    """Return a key of its own for a number; without a key there is none."""
    return None if key is None else jax.random.fold_in(key, number)


def dropped_attention(
    query_BTHK: jax.Array,
    key_BTGK: jax.Array,
    value_BTGK: jax.Array,
    rate: float,
    key: jax.Array,
    *,
    scale: float,
    sink: float | jax.Array | None,
    causal: bool,
    **visibility,
) -> jax.Array:
    """Attend to the text itself, dropping probabilities: [B, T, H, K].

    No fused kernel drops them. Probabilities are of some queries at a time, made again in the backward pass,
    so that memory stays linear in T.

    Args:
      scale, sink, causal, **visibility: see `jaxllm_kernels.attention`.
    """
    T, H = query_BTHK.shape[1:3]
    sink_H = kernel.sink_logits(sink, H)
    allowed = kernel.visible(T, T, causal=causal, **visibility)

    @functools.partial(jax.checkpoint, static_argnums=(0, 1))
    def attend(begin, end, query_BTHK, key_BTGK, value_BTGK, allowed, key):
        last = end if causal else T
        scores_BHTS = kernel.attention_scores(query_BTHK[:, begin:end], key_BTGK[:, :last], scale)
        mine = None if allowed is None else allowed[:, :, begin:end, :last]
        probs_BHTS = kernel.attention_probs(scores_BHTS, mine, sink_H)
        return kernel.mix(dropout(probs_BHTS, rate, key), value_BTGK[:, :last], query_BTHK.dtype)

    parts = []
    for begin in range(0, T, _QUERIES):
        end = min(begin + _QUERIES, T)
        part_key = jax.random.fold_in(key, begin)
        parts.append(attend(begin, end, query_BTHK, key_BTGK, value_BTGK, allowed, part_key))
    return jnp.concatenate(parts, axis=1)
