"""Attention by cuDNN, through jax.nn, for calls that ask for nothing special."""

import jax
import jax.numpy as jnp


def attention(q, k, v, *, scale, causal, window):
    """Return [B, T, H, K], with cuDNN's own backward pass."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )


def cannot(q, k, *, causal, window, sink_H, segment_ids_BT, mask_BTS, with_lse) -> str | None:
    """Return why cuDNN cannot run a call, or None if it can.

    jax asks for cuDNN's version while it traces, so this cannot be compiled where there is no GPU.
    """
    if jax.default_backend() != "gpu":
        return "cuDNN is compiled only where there is a GPU"
    if float(jax.local_devices()[0].compute_capability) < 8:
        return "cuDNN's attention needs compute capability 8.0"
    if sink_H is not None or segment_ids_BT is not None or mask_BTS is not None:
        return "sinks, segment ids and masks are not passed on to cuDNN"
    if with_lse:
        return "jax gives the logsumexp of cuDNN no gradient"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN takes bfloat16 and float16, not {q.dtype}"
    if q.shape[3] > 128 or q.shape[3] % 8:
        return f"cuDNN takes heads of at most 128 channels, a multiple of 8, not {q.shape[3]}"
    if q.shape[1] != k.shape[1] or q.shape[1] % 2:
        return f"{q.shape[1]} queries and {k.shape[1]} keys are not the same, even number"
    if window and not causal:
        return "cuDNN has windows only together with causality"
    return None
