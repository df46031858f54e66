"""Scaled dot-product attention, with the implementation chosen for the platform in one place."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm_kernels.attention import cudnn, reference, xla
from jaxllm_kernels.attention.visibility import NOTHING
from jaxllm_kernels.compat import varying_like
from jaxllm_kernels.dispatch import dispatch
from jaxllm_kernels.dtypes import widened

IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu", "cudnn")


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
        step passes causal=False and this. Only "reference" and "xla" take it.
      sink: logit of one more key whose value is zero: None (or -inf) is softmax, 0 is softmax-1,
        [H] is learned. Rows that see nothing give 0 and a zero gradient.
      implementation: "reference" (differentiable any number of times), "xla", "pallas_tpu",
        "pallas_gpu", "cudnn" (all differentiable once; no scores are kept for the backward pass),
        or None for the best one that can run this on the platform the program is lowered for.
        (On a machine with a GPU, cuDNN is chosen when the program is traced.)

    Raises:
      ValueError: arguments that do not fit, an unknown implementation, or one that cannot run this.
    """
    given = _Given(scale, causal, window, segment_ids_BT, mask_BTS, sink, implementation)
    return _attention(query_BTHK, key_BSGK, value_BSGK, given, with_lse=False)[0]


def attention_with_lse(
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
) -> tuple[jax.Array, jax.Array]:
    """Return (attention's output, logsumexp of each row's scores in float32 [B, H, T]).

    Gradients flow through both. The logsumexp is over the scaled scores of visible keys and the
    sink, and -inf where there are none. To merge attention over parts of the keys, leave the sink
    out of the parts and count it once at the end. Arguments as in `attention`.
    """
    given = _Given(scale, causal, window, segment_ids_BT, mask_BTS, sink, implementation)
    return _attention(query_BTHK, key_BSGK, value_BSGK, given, with_lse=True)


class _Given(NamedTuple):
    """The options of a call, as the caller gave them."""

    scale: float | None
    causal: bool
    window: int | None
    segment_ids_BT: jax.Array | None
    mask_BTS: jax.Array | None
    sink: float | jax.Array | None
    implementation: str | None


class _Fixed(NamedTuple):
    """What is known when the program is traced."""

    scale: float
    causal: bool
    window: int | None
    with_lse: bool
    implementation: str | None


def _attention(q, k, v, given: _Given, with_lse: bool):
    """Return (output, logsumexp or None)."""
    _check(q, k, v, given)
    T, H, K = q.shape[1:]
    scale = _scale(given.scale, K)
    # A window of all queries' positions hides nothing; a huge one would overflow the kernels' int32.
    window = int(given.window) if given.window and given.window < T else None
    sink_H = sink_logits(given.sink, H)
    if given.implementation == "reference" or q.size == 0 or k.size == 0:
        return reference.attention(
            q, k, v,
            scale=scale,
            causal=given.causal,
            window=window,
            segment_ids_BT=given.segment_ids_BT,
            mask_BTS=given.mask_BTS,
            sink_H=sink_H,
            with_lse=with_lse,
        )  # fmt: skip
    if given.implementation in (None, "cudnn"):
        reason = cudnn.cannot(
            q, k, causal=given.causal, window=window, sink_H=sink_H, with_lse=with_lse,
            segment_ids_BT=given.segment_ids_BT, mask_BTS=given.mask_BTS,
        )  # fmt: skip
        if reason is None:
            return cudnn.attention(q, k, v, scale=scale, causal=given.causal, window=window), None
        if given.implementation == "cudnn":
            raise ValueError(f"attention: cudnn cannot run this: {reason}")
    arrays = [q, k, v, sink_H, given.segment_ids_BT, given.mask_BTS]
    # Inside shard_map all then vary over the same axes, and a replicated input's gradient is summed.
    arrays = [x if x is None else varying_like(x, *arrays) for x in arrays]
    fixed = _Fixed(scale, given.causal, window, with_lse, given.implementation)
    return _differentiable(*arrays, fixed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _differentiable(q, k, v, sink_H, segment_ids_BT, mask_BTS, fixed: _Fixed):
    return _run_forward(q, k, v, sink_H, segment_ids_BT, mask_BTS, fixed)[0]


def _run_forward(q, k, v, sink_H, segment_ids_BT, mask_BTS, fixed: _Fixed):
    arrays = q, k, v, sink_H, segment_ids_BT, mask_BTS
    out, lse_BHT = _dispatch("forward", arrays, fixed, ())
    returned_lse = None
    if fixed.with_lse:
        returned_lse = jnp.where(lse_BHT < NOTHING / 4, -jnp.inf, lse_BHT)
    return (out, returned_lse), (*arrays, out, lse_BHT)


def _run_backward(fixed: _Fixed, saved, cotangents):
    *arrays, out, lse_BHT = saved
    d_q, d_k, d_v, d_sink = _dispatch("backward", arrays, fixed, (out, lse_BHT, *cotangents))
    return d_q, d_k, d_v, d_sink, None, None


_differentiable.defvjp(_run_forward, _run_backward)


@functools.cache
def _traced_once(rule: str):
    """Return the implementations of "forward" or "backward", each traced once for its shapes and options.

    Every attention of every program is traced for all platforms (`dispatch`), and without this a kernel
    would be again for each.
    """
    from jaxllm_kernels.attention import pallas_gpu, pallas_tpu  # here: Pallas is slow to import

    once = functools.partial(jax.jit, static_argnames=("scale", "causal", "window"), inline=True)
    modules = {"xla": xla, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
    return {name: once(getattr(module, rule)) for name, module in modules.items()}


def _dispatch(rule: str, arrays, fixed: _Fixed, more):
    options = dict(scale=fixed.scale, causal=fixed.causal, window=fixed.window)
    return dispatch(
        "attention",
        fixed.implementation,
        {name: functools.partial(run, **options) for name, run in _traced_once(rule).items()},
        _cannot(arrays[0], arrays[5]),
        *arrays,
        *more,
    )


def _cannot(q, mask_BTS) -> dict[str, str | None]:
    """Return for each implementation why it cannot run a call."""
    from jaxllm_kernels.attention import pallas_tpu

    pallas = None
    if mask_BTS is not None:
        pallas = "mask_BTS is for decoding, which reads each key once; it has no kernel"
    elif q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        pallas = f"queries are {q.dtype}, not bfloat16, float16 or float32"
    elif q.shape[3] > 256:
        pallas = f"heads of {q.shape[3]} channels exceed 256"
    return {
        "pallas_tpu": pallas or pallas_tpu.cannot(q),
        "pallas_gpu": pallas,
    }


def sink_logits(sink: float | jax.Array | None, num_heads: int) -> jax.Array | None:
    """Return one sink logit a head, [H], or None where a sink would have no weight."""
    if sink is None or (isinstance(sink, float | int) and sink == -math.inf):
        return None
    if jnp.shape(sink) not in ((), (num_heads,)):
        raise ValueError(f"sink has shape {jnp.shape(sink)}; it must be a number or [H] = ({num_heads},)")
    wide = widened(sink.dtype) if isinstance(sink, jax.Array) else jnp.float32
    return jnp.broadcast_to(jnp.asarray(sink, wide), (num_heads,))


def _scale(scale: float | None, K: int) -> float:
    return K**-0.5 if scale is None else scale


def _check(q, k, v, given: _Given):
    if given.implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation '{given.implementation}' is not one of {IMPLEMENTATIONS}")
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} is {x.dtype} {x.shape}; it must be floats of four axes")
    window = given.window
    if window is not None and (
        isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 0
    ):
        raise ValueError(f"window is {window!r}; it must be a positive int, or None or 0 for no limit")
    B, T, H, K = q.shape
    S, G = k.shape[1:3]
    if 0 in (H, K, G):
        raise ValueError(f"query {q.shape} and key {k.shape} have no heads, or heads without channels")
    if H % G or k.shape != (B, S, G, K) or v.shape != k.shape:
        raise ValueError(
            f"query {q.shape}, key {k.shape} and value {v.shape} are not "
            "[B, T, H, K], [B, S, G, K] and [B, S, G, K] with G dividing H"
        )
    segment_ids, mask = given.segment_ids_BT, given.mask_BTS
    if segment_ids is not None and not (T == S and segment_ids.shape == (B, T)):
        raise ValueError(f"segment_ids {segment_ids.shape} are not [B, T] = {(B, T)} with T == S")
    if mask is not None and mask.dtype != bool:
        raise ValueError(f"mask is {mask.dtype}; it must be bool, True where a key is visible")
    if mask is not None and not (
        mask.ndim == 3
        and mask.shape[0] in (1, B)
        and mask.shape[1] in (1, T)
        and mask.shape[2] == S
    ):
        raise ValueError(
            f"mask {mask.shape} is not [B or 1, T or 1, S] for B, T, S = {(B, T, S)}"
        )
