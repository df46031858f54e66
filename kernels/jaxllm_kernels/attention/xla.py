"""Attention in plain XLA operations: a forward and a backward pass that share what they save.

Like FlashAttention (arXiv 2205.14135) the forward pass keeps only the output and the logsumexp of
each row, and the backward pass recomputes the probabilities. The square of scores is taken in
blocks, each of which leaves out what causality and the window hide. Up to UNROLLED positions the
blocks are unrolled and see all their keys at once; beyond, `xla_loop` goes over them in loops. So
memory grows linearly with the length. Query heads that share a key head are stacked as rows of one
matmul, so keys and values are not repeated.

Suffixes here: N rows, the query positions of all heads of a group, and s keys of one block.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllm_kernels.attention import xla_loop
from jaxllm_kernels.attention.head_by_head import head_by_head
from jaxllm_kernels.attention.layout import by_group, by_time, dot, for_rows
from jaxllm_kernels.attention.visibility import NOTHING
from jaxllm_kernels.dtypes import widened

UNROLLED = 1024  # the longest text whose blocks are unrolled
BLOCK = 128  # rows of scores held at a time


def forward(q, k, v, sink_H, segment_ids_BT, mask_BTS, *, scale, causal, window):
    """Return (output [B, T, H, K], logsumexp [B, H, T]); arguments as in `attention`."""

    def attend(q, k, v, sink_H, segment_ids_BT, mask_BTS):
        (B, T, H, _), (S, G) = q.shape, k.shape[1:3]
        grouped = [by_group(q, G), k.swapaxes(1, 2), v.swapaxes(1, 2)]
        if sink_H is not None:
            sink_BGR = jnp.broadcast_to(sink_H.astype(_wide(q)).reshape(G, H // G), (B, G, H // G))
            grouped.append(sink_BGR)
        run = _forward if max(T, S) <= UNROLLED else xla_loop.forward
        out_BGRTK, lse_BGRT = run(
            *grouped, segment_ids_BT, mask_BTS, scale=scale, causal=causal, window=window
        )
        return by_time(out_BGRTK), lse_BGRT.reshape(B, H, T)

    arrays, axes = (q, k, v, sink_H), (2, 2, 2, 0)
    return head_by_head(attend, arrays, axes, (2, 1), segment_ids_BT, mask_BTS)


def backward(
    q, k, v, sink_H, segment_ids_BT, mask_BTS, out, lse_BHT, d_out, d_lse_BHT, *, scale, causal, window
):
    """Return the cotangents of q, k, v and sink_H (None without a sink).

    Args:
      out, lse_BHT: what `forward` returned.
      d_out, d_lse_BHT: their cotangents; d_lse_BHT may be None.
    """

    def attend(q, k, v, d_out, lse_BHT, mean_BHT, segment_ids_BT, mask_BTS):
        (B, T, H, _), (S, G) = q.shape, k.shape[1:3]
        grouped = [by_group(q, G), k.swapaxes(1, 2), v.swapaxes(1, 2), by_group(d_out, G)]
        grouped += [x.reshape(B, G, H // G, T) for x in (lse_BHT, mean_BHT)]
        run = _backward if max(T, S) <= UNROLLED else xla_loop.backward
        d_query, d_key, d_value = run(
            *grouped, segment_ids_BT, mask_BTS, scale=scale, causal=causal, window=window
        )
        return by_time(d_query), d_key.swapaxes(1, 2), d_value.swapaxes(1, 2)

    mean_BHT = row_means(out, d_out, d_lse_BHT)
    arrays, axes = (q, k, v, d_out, lse_BHT, mean_BHT), (2, 2, 2, 2, 1, 1)
    gradients = head_by_head(attend, arrays, axes, (2, 2, 2), segment_ids_BT, mask_BTS)
    return *gradients, sink_gradient(sink_H, lse_BHT, mean_BHT)


def row_means(out_BTHK, d_out_BTHK, d_lse_BHT) -> jax.Array:
    """Return what to subtract from the cotangent of each row's probabilities: [B, H, T].

    A score's cotangent is p (dp - mean): sum_s p dp is also sum_k out d_out, and the logsumexp's
    cotangent adds p d_lse.
    """
    wide = _wide(out_BTHK)
    mean_BHT = jnp.sum(out_BTHK.astype(wide) * d_out_BTHK.astype(wide), axis=-1).swapaxes(1, 2)
    return mean_BHT if d_lse_BHT is None else mean_BHT - d_lse_BHT


def sink_gradient(sink_H, lse_BHT, mean_BHT) -> jax.Array | None:
    """Return the cotangent of the sink logits: its value is zero, so its probability only loses."""
    if sink_H is None:
        return None
    share_BHT = jnp.exp(sink_H.astype(lse_BHT.dtype)[None, :, None] - lse_BHT)
    return -jnp.sum(share_BHT * mean_BHT, axis=(0, 2)).astype(sink_H.dtype)


def _forward(query_BGRTK, key_BGSK, value_BGSK, *more, scale, causal, window):
    *sink_BGR, segment_ids_BT, mask_BTS = more
    (_, _, R, T, _), S = query_BGRTK.shape, key_BGSK.shape[2]
    wide = _wide(query_BGRTK)
    floor = jnp.asarray(NOTHING / 2, wide)
    if sink_BGR:
        sink_BGR1 = sink_BGR[0][..., None]
        # See reference.attention_probs for why the maximum must include the sink.
        floor = jnp.maximum(sink_BGR1, floor)
    outs, lses = [], []
    for queries in _cut(T):
        keys = _keys_seen(queries, S, causal, window)
        hidden = _hidden(queries, keys, segment_ids_BT, mask_BTS, causal, window, wide)
        scores_BGNs = dot(_rows(query_BGRTK, queries), key_BGSK[:, :, keys], 3, 3, wide) * scale
        if hidden is not None:
            scores_BGNs = scores_BGNs + for_rows(hidden, R)[:, None]
        top_BGRt = jnp.max(scores_BGNs, axis=-1).reshape(*query_BGRTK.shape[:3], -1)
        top_BGRt = jnp.maximum(top_BGRt, floor)
        top_BGN1 = top_BGRt.reshape(*scores_BGNs.shape[:3], 1)
        weight_BGNs = jnp.exp(scores_BGNs - top_BGN1)
        total_BGRt = jnp.sum(weight_BGNs, axis=-1).reshape(top_BGRt.shape)
        if sink_BGR:
            total_BGRt = total_BGRt + jnp.exp(sink_BGR1 - top_BGRt)
        total_BGRt = jnp.maximum(total_BGRt, jnp.finfo(wide).tiny)  # 0 where nothing is visible
        out_BGNK = dot(weight_BGNs.astype(value_BGSK.dtype), value_BGSK[:, :, keys], 3, 2, wide)
        out_BGRtK = out_BGNK.reshape(*top_BGRt.shape, -1) / total_BGRt[..., None]
        outs.append(out_BGRtK.astype(query_BGRTK.dtype))
        lses.append(top_BGRt + jnp.log(total_BGRt))
    return jnp.concatenate(outs, axis=3), jnp.concatenate(lses, axis=3)


def _backward(
    query_BGRTK, key_BGSK, value_BGSK, d_out_BGRTK, lse_BGRT, mean_BGRT, segment_ids_BT, mask_BTS,
    *, scale, causal, window,
):  # fmt: skip
    (B, G, R, T, K), S = query_BGRTK.shape, key_BGSK.shape[2]
    dtype, wide = query_BGRTK.dtype, lse_BGRT.dtype
    lse_BGRT1, mean_BGRT1 = lse_BGRT[..., None], mean_BGRT[..., None]
    key_BGKS = key_BGSK.swapaxes(2, 3)
    d_query_BGKRT = jnp.zeros((B, G, K, R, T), wide)
    d_keys, d_values = [], []
    # Blocks of keys, scores with keys first, the queries' gradient with positions last: all three matmuls
    # that read scores then read them as they lie in memory, which XLA's CPU backend does twice as fast.
    for keys in _cut(S):
        queries = _queries_seeing(keys, T, causal, window)
        hidden = _hidden(queries, keys, segment_ids_BT, mask_BTS, causal, window, wide)
        query_BGNK, d_out_BGNK = _rows(query_BGRTK, queries), _rows(d_out_BGRTK, queries)
        key_BGsK = key_BGSK[:, :, keys]
        scores_BGsN = dot(key_BGsK, query_BGNK, 3, 3, wide) * scale
        if hidden is not None:
            scores_BGsN = scores_BGsN + for_rows(hidden, R).swapaxes(1, 2)[:, None]
        probs_BGsN = jnp.exp(scores_BGsN - _rows(lse_BGRT1, queries).swapaxes(2, 3))
        d_probs_BGsN = dot(value_BGSK[:, :, keys], d_out_BGNK, 3, 3, wide)
        d_scores_BGsN = probs_BGsN * (d_probs_BGsN - _rows(mean_BGRT1, queries).swapaxes(2, 3))
        d_scores_BGsN = d_scores_BGsN.astype(dtype)
        d_key_BGsK = dot(d_scores_BGsN, query_BGNK, 3, 2, wide) * scale
        d_keys.append(d_key_BGsK.astype(key_BGSK.dtype))
        d_value_BGsK = dot(probs_BGsN.astype(value_BGSK.dtype), d_out_BGNK, 3, 2, wide)
        d_values.append(d_value_BGsK.astype(value_BGSK.dtype))
        d_rows_BGKN = dot(key_BGKS[..., keys], d_scores_BGsN, 3, 2, wide)
        d_query_BGKRT = d_query_BGKRT.at[..., queries].add(d_rows_BGKN.reshape(B, G, K, R, -1))
    return (
        (d_query_BGKRT * scale).astype(dtype).transpose(0, 1, 3, 4, 2),
        jnp.concatenate(d_keys, axis=2),
        jnp.concatenate(d_values, axis=2),
    )


def _wide(x: jax.Array):
    return widened(x.dtype)


def _cut(length: int) -> list[slice]:
    """Cut a length into blocks: at least four from 128 positions on, of BLOCK positions or fewer.

    Four causal blocks compute 5/8 of the square of scores; on a CPU that pays from 32 rows a block
    on (measured, T = 64 to 1024).
    """
    blocks = max(min(length // 32, 4), -(-length // BLOCK), 1)
    size = -(-length // blocks)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _keys_seen(queries: slice, S: int, causal: bool, window: int | None) -> slice:
    """Return the range of keys that some query of the block may see."""
    stop = min(queries.stop, S) if causal else S
    first = max(queries.start - window + 1, 0) if window else 0
    return slice(min(first, stop - 1), stop)


def _queries_seeing(keys: slice, T: int, causal: bool, window: int | None) -> slice:
    """Return the range of queries that may see some key of the block."""
    start = keys.start if causal else 0
    stop = min(keys.stop - 1 + window, T) if window else T
    return slice(min(start, T - 1), max(stop, min(start, T - 1) + 1))


def _hidden(queries, keys, segment_ids_BT, mask_BTS, causal, window, dtype):
    """Return what to add to one block's scores, 0 or NOTHING: [1 or B, t, s], or None for all 0.

    Added, not selected: XLA's CPU backend fuses an addition into its matmul and softmax kernels.
    """
    t, s = (jnp.arange(cut.start, cut.stop, dtype=jnp.int32) for cut in (queries, keys))
    distance_ts = t[:, None] - s[None]
    seen = []
    if causal:
        seen.append((distance_ts >= 0)[None])
    if window:
        seen.append((distance_ts < window)[None])
    if segment_ids_BT is not None:
        seen.append(segment_ids_BT[:, queries, None] == segment_ids_BT[:, None, keys])
    if mask_BTS is not None:
        rows = slice(None) if mask_BTS.shape[1] == 1 else queries
        seen.append(jnp.broadcast_to(mask_BTS[:, rows, keys], (len(mask_BTS), *distance_ts.shape)))
    if not seen:
        return None
    return jnp.where(functools.reduce(jnp.logical_and, seen), 0.0, NOTHING).astype(dtype)


def _rows(x_BGRTK: jax.Array, queries: slice) -> jax.Array:
    """Cut out some queries and stack the heads of a group: [B, G, N, K]."""
    x_BGRtK = x_BGRTK[:, :, :, queries]
    B, G, R, t, K = x_BGRtK.shape
    return x_BGRtK.reshape(B, G, R * t, K)
