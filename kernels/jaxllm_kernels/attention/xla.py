"""Attention in plain XLA operations, with its own backward pass.

Like FlashAttention (arXiv 2205.14135) it saves only the output and the logsumexp of each row, and
recomputes the probabilities in the backward pass. The square of scores is taken in a few blocks,
each of which leaves out what causality and the window hide: scores above the diagonal blocks are
never computed. Query heads that share a key head are stacked as rows of one matmul, so keys and
values are not repeated.

Suffixes here: N rows, the query positions of all heads of a group, and s keys of one block.
"""

import functools

import jax
import jax.numpy as jnp

# The score of a hidden key: exp of it minus any visible score is 0, and unlike -inf it leaves no
# NaN where nothing is visible.
_NOTHING = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def attention(
    query_BTHK,
    key_BSGK,
    value_BSGK,
    sink_H,
    segment_ids_BT,
    mask_BTS,
    scale,
    causal,
    window,
    blocks,
):
    """Return [B, T, H, K]; arguments as in `jaxllm_kernels.attention.attention`, none optional.

    Args:
      blocks: how many blocks to cut the queries (forward) or keys (backward) into.
    """
    return _forward(
        query_BTHK,
        key_BSGK,
        value_BSGK,
        sink_H,
        segment_ids_BT,
        mask_BTS,
        scale,
        causal,
        window,
        blocks,
    )[0]


def _forward(q, k, v, sink_H, segment_ids_BT, mask_BTS, scale, causal, window, blocks):
    T, S, G = q.shape[1], k.shape[1], k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    query_BGRTK, key_BGSK, value_BGSK = _by_group(q, G), k.swapaxes(1, 2), v.swapaxes(1, 2)
    R = query_BGRTK.shape[2]
    floor = jnp.asarray(_NOTHING / 2, wide)
    if sink_H is not None:
        sink_G_R1 = sink_H.astype(wide).reshape(G, R, 1)
        # See reference.attention_probs for why the maximum must include the sink.
        floor = jnp.maximum(sink_G_R1, floor)
    outs, lses = [], []
    for queries in _cut(T, blocks):
        keys = _keys_seen(queries, S, causal, window)
        hidden = _hidden(queries, keys, segment_ids_BT, mask_BTS, causal, window, wide)
        scores_BGNs = _dot(_rows(query_BGRTK, queries), key_BGSK[:, :, keys], 3, 3, wide) * scale
        if hidden is not None:
            scores_BGNs = scores_BGNs + _for_rows(hidden, R)[:, None]
        top_BGRt = jnp.max(scores_BGNs, axis=-1).reshape(*query_BGRTK.shape[:3], -1)
        top_BGRt = jnp.maximum(top_BGRt, floor)
        top_BGN1 = top_BGRt.reshape(*scores_BGNs.shape[:3], 1)
        weight_BGNs = jnp.exp(scores_BGNs - top_BGN1)
        total_BGRt = jnp.sum(weight_BGNs, axis=-1).reshape(top_BGRt.shape)
        if sink_H is not None:
            total_BGRt = total_BGRt + jnp.exp(sink_G_R1 - top_BGRt)
        total_BGRt = jnp.maximum(total_BGRt, jnp.finfo(wide).tiny)  # 0 where nothing is visible
        out_BGNK = _dot(weight_BGNs.astype(v.dtype), value_BGSK[:, :, keys], 3, 2, wide)
        outs.append(out_BGNK.reshape(*top_BGRt.shape, -1) / total_BGRt[..., None])
        lses.append(top_BGRt + jnp.log(total_BGRt))
    out_BTHK = _by_time(jnp.concatenate(outs, axis=3)).astype(q.dtype)
    lse_BGRT = jnp.concatenate(lses, axis=3)
    return out_BTHK, (q, k, v, sink_H, segment_ids_BT, mask_BTS, out_BTHK, lse_BGRT)


def _backward(scale, causal, window, blocks, saved, d_out_BTHK):
    q, k, v, sink_H, segment_ids_BT, mask_BTS, out_BTHK, lse_BGRT = saved
    T, S, G = q.shape[1], k.shape[1], k.shape[2]
    wide = lse_BGRT.dtype
    query_BGRTK, d_out_BGRTK = _by_group(q, G), _by_group(d_out_BTHK, G)
    key_BGSK, value_BGSK = k.swapaxes(1, 2), v.swapaxes(1, 2)
    R = query_BGRTK.shape[2]
    # sum_s p dp of each row, which is also sum_k out d_out.
    mean_BTH = jnp.sum(out_BTHK.astype(wide) * d_out_BTHK.astype(wide), axis=-1)
    mean_BGRT = _by_group(mean_BTH[..., None], G)[..., 0]
    d_query_BGRTK = jnp.zeros(query_BGRTK.shape, wide)
    d_keys, d_values = [], []
    # Blocks of keys, and scores with keys first: two of the three matmuls that read scores then
    # read them as they lie in memory, against one with queries first: a tenth faster on a CPU.
    for keys in _cut(S, blocks):
        queries = _queries_seeing(keys, T, causal, window)
        hidden = _hidden(queries, keys, segment_ids_BT, mask_BTS, causal, window, wide)
        query_BGNK, d_out_BGNK = _rows(query_BGRTK, queries), _rows(d_out_BGRTK, queries)
        key_BGsK = key_BGSK[:, :, keys]
        scores_BGsN = _dot(key_BGsK, query_BGNK, 3, 3, wide) * scale
        if hidden is not None:
            scores_BGsN = scores_BGsN + _for_rows(hidden, R).swapaxes(1, 2)[:, None]
        lse_BG1N = _rows(lse_BGRT[..., None], queries).swapaxes(2, 3)
        mean_BG1N = _rows(mean_BGRT[..., None], queries).swapaxes(2, 3)
        probs_BGsN = jnp.exp(scores_BGsN - lse_BG1N)
        d_probs_BGsN = _dot(value_BGSK[:, :, keys], d_out_BGNK, 3, 3, wide)
        d_scores_BGsN = (probs_BGsN * (d_probs_BGsN - mean_BG1N)).astype(q.dtype)
        d_keys.append(_dot(d_scores_BGsN, query_BGNK, 3, 2, wide))
        d_values.append(_dot(probs_BGsN.astype(v.dtype), d_out_BGNK, 3, 2, wide))
        d_rows_BGNK = _dot(d_scores_BGsN, key_BGsK, 2, 2, wide)
        d_rows_BGRtK = d_rows_BGNK.reshape(*query_BGRTK.shape[:3], -1, key_BGsK.shape[3])
        d_query_BGRTK = d_query_BGRTK.at[:, :, :, queries].add(d_rows_BGRtK)
    d_sink_H = None
    if sink_H is not None:
        sink_G_R1 = sink_H.astype(wide).reshape(G, R, 1)
        # The sink's value is zero, so its probability only loses: ds = p (0 - sum p dp).
        d_sink_GR = -jnp.sum(jnp.exp(sink_G_R1 - lse_BGRT) * mean_BGRT, axis=(0, 3))
        d_sink_H = d_sink_GR.reshape(-1).astype(sink_H.dtype)
    return (
        _by_time(d_query_BGRTK * scale).astype(q.dtype),
        (jnp.concatenate(d_keys, axis=2) * scale).swapaxes(1, 2).astype(k.dtype),
        jnp.concatenate(d_values, axis=2).swapaxes(1, 2).astype(v.dtype),
        d_sink_H,
        None,
        None,
    )


attention.defvjp(_forward, _backward)


def _cut(length: int, blocks: int) -> list[slice]:
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
    """Return what to add to one block's scores, 0 or _NOTHING: [1 or B, t, s], or None for all 0.

    Added, not selected: XLA's CPU backend fuses an addition into its matmul and softmax kernels.
    """
    distance_ts = (
        jnp.arange(queries.start, queries.stop)[:, None] - jnp.arange(keys.start, keys.stop)[None]
    )
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
    return jnp.where(functools.reduce(jnp.logical_and, seen), 0.0, _NOTHING).astype(dtype)


def _for_rows(hidden_Bts: jax.Array, R: int) -> jax.Array:
    """Repeat a mask for the R heads of a group: [.., R * t, s]."""
    return hidden_Bts if R == 1 else jnp.tile(hidden_Bts, (1, R, 1))


def _by_group(x_BTHK: jax.Array, G: int) -> jax.Array:
    """Return [B, G, H / G, T, K]."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)


def _by_time(x_BGRTK: jax.Array) -> jax.Array:
    """Undo `_by_group`."""
    B, G, R, T, K = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def _rows(x_BGRTK: jax.Array, queries: slice) -> jax.Array:
    """Cut out some queries and stack the heads of a group: [B, G, N, K]."""
    x_BGRtK = x_BGRTK[:, :, :, queries]
    B, G, R, t, K = x_BGRtK.shape
    return x_BGRtK.reshape(B, G, R * t, K)


def _dot(left_BGxy, right_BGxy, left_axis: int, right_axis: int, dtype) -> jax.Array:
    """Multiply matrices of each batch row and group, contracting the given axes."""
    return jax.lax.dot_general(
        left_BGxy,
        right_BGxy,
        (((left_axis,), (right_axis,)), ((0, 1), (0, 1))),
        preferred_element_type=dtype,
    )
