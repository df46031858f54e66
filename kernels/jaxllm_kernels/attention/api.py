"""Scaled dot-product attention, with the implementation chosen for the backend in one place."""

import math

import jax
import jax.numpy as jnp

from jaxllm_kernels.attention import reference, xla

IMPLEMENTATIONS = ("reference", "xla")


def attention(
    query_BTHK: jax.Array,
    key_BSGK: jax.Array,
    value_BSGK: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    segment_ids_BT: jax.Array | None = None,
    mask_BTS: jax.Array | None = None,
    sink: float | jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Return softmax(scale * query key^T) value over the keys each query may see: [B, T, H, K].

    Args:
      query_BTHK: [B, T, H, K].
      key_BSGK: [B, S, G, K]; G divides H, and query head h reads key head h // (H / G).
      value_BSGK: [B, S, G, K].
      scale: None is 1 / sqrt(K).
      causal: a query sees no later key.
      window: a query sees itself and the window - 1 positions before it; None or 0: no limit.
      segment_ids_BT: int [B, T]; a query sees only keys of its own document (needs T == S).
      mask_BTS: bool [B or 1, T or 1, S], True where allowed; together with the others. A decoding
        step passes causal=False and this.
      sink: logit of one more key whose value is zero: None (or -inf) is softmax, 0 is softmax-1,
        [H] is learned. Rows that see nothing give 0 and a zero gradient.
      implementation: "reference" (differentiable any number of times), "xla" (differentiable once,
        keeps no probabilities for the backward pass), or None for the best there is: "xla".

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
    """
    _check(query_BTHK, key_BSGK, value_BSGK, segment_ids_BT, mask_BTS, implementation)
    H, K = query_BTHK.shape[2:]
    if scale is None:
        scale = K**-0.5
    sink_H = sink_logits(sink, H)
    if implementation == "reference":
        return reference.attention(
            query_BTHK,
            key_BSGK,
            value_BSGK,
            scale=scale,
            causal=causal,
            window=window,
            segment_ids_BT=segment_ids_BT,
            mask_BTS=mask_BTS,
            sink_H=sink_H,
        )
    return xla.attention(
        query_BTHK,
        key_BSGK,
        value_BSGK,
        sink_H,
        segment_ids_BT,
        mask_BTS,
        scale,
        causal,
        window,
        _blocks(query_BTHK.shape[1]) if causal or window else 1,
    )


def sink_logits(sink: float | jax.Array | None, num_heads: int) -> jax.Array | None:
    """Return one sink logit a head, [H], or None where a sink would have no weight."""
    if sink is None or (isinstance(sink, float | int) and sink == -math.inf):
        return None
    wide = jnp.promote_types(jnp.result_type(sink), jnp.float32)
    return jnp.broadcast_to(jnp.asarray(sink, wide), (num_heads,))


def _blocks(T: int) -> int:
    """Return how many blocks to cut the square of scores into.

    Four compute 5/8 of it; on a CPU they pay from 32 rows a block on (measured, T = 64 to 1024).
    """
    return min(max(T // 32, 1), 4)


def _check(query_BTHK, key_BSGK, value_BSGK, segment_ids_BT, mask_BTS, implementation):
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation '{implementation}' is not one of {IMPLEMENTATIONS}")
    B, T, H, K = query_BTHK.shape
    S, G = key_BSGK.shape[1:3]
    if H % G or key_BSGK.shape != (B, S, G, K) or value_BSGK.shape != key_BSGK.shape:
        raise ValueError(
            f"query {query_BTHK.shape}, key {key_BSGK.shape} and value {value_BSGK.shape} are not "
            "[B, T, H, K], [B, S, G, K] and [B, S, G, K] with G dividing H"
        )
    if segment_ids_BT is not None and not (T == S and segment_ids_BT.shape == (B, T)):
        raise ValueError(
            f"segment_ids {segment_ids_BT.shape} are not [B, T] = {(B, T)} with T == S"
        )
    if mask_BTS is not None and not (
        mask_BTS.ndim == 3
        and mask_BTS.shape[0] in (1, B)
        and mask_BTS.shape[1] in (1, T)
        and mask_BTS.shape[2] == S
    ):
        raise ValueError(
            f"mask {mask_BTS.shape} is not [B or 1, T or 1, S] for B, T, S = {(B, T, S)}"
        )
