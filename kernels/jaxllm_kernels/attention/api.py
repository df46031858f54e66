"""Scaled dot-product attention, with the implementation chosen for the backend in one place."""

import jax
import jax.numpy as jnp

from jaxllm_kernels.attention import reference

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
      implementation: one of IMPLEMENTATIONS, or None for the fastest on the backend.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
    """
    H, K = query_BTHK.shape[2:]
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation '{implementation}' is not one of {IMPLEMENTATIONS}")
    if scale is None:
        scale = K**-0.5
    if sink is not None and not isinstance(sink, jax.Array):
        sink = None if sink == -jnp.inf else jnp.full(H, sink, jnp.float32)
    run = reference.attention
    return run(
        query_BTHK,
        key_BSGK,
        value_BSGK,
        scale=scale,
        causal=causal,
        window=window,
        segment_ids_BT=segment_ids_BT,
        mask_BTS=mask_BTS,
        sink_H=sink,
    )
