"""Attention in plain XLA operations, with its own backward pass.

Like FlashAttention (arXiv 2205.14135) it saves only the output and the logsumexp of each row, and
recomputes the probabilities in the backward pass. Queries are taken in a few blocks, each against
only the keys that causality and the window let it see: scores above the diagonal blocks are never
computed. Query heads that share a key head are stacked as rows of one matmul, so keys and values
are not repeated.
"""

import functools

import jax
import jax.numpy as jnp


# The score of a hidden key: exp of it minus any visible score is 0, and unlike -inf it leaves no NaN
# where nothing is visible.
_NOTHING = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def attention(
    query_BTHK, key_BSGK, value_BSGK, sink_H, segment_ids_BT, mask_BTS, scale, causal, window, blocks
):
    """Return [B, T, H, K]; arguments as in `jaxllm_kernels.attention.attention`, none optional.

    Args:
      blocks: number of query blocks.
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
    H, G = q.shape[2], k.shape[2]
    query, key, value = _head_major(q, G), _head_major(k, G), _head_major(v, G)
    masks = (segment_ids_BT, mask_BTS, causal, window)
    outputs, lses = [], []
    for rows, keys in _blocks(q.shape[1], k.shape[1], causal, window, blocks):
        scores = _scores(query, key, rows, keys, scale, masks)
        floor = jnp.asarray(_NOTHING / 2, scores.dtype)
        if sink_H is not None:
            # See reference.attention_probs for why the maximum includes the sink.
            sink = sink_H.reshape(G, H // G, 1).astype(scores.dtype)
            floor = jnp.maximum(sink, floor)
        top = jnp.maximum(jnp.max(scores, axis=-1), floor)
        weight = jnp.exp(scores - top[..., None])
        total = jnp.sum(weight, axis=-1)
        if sink_H is not None:
            total = total + jnp.exp(sink - top)
        total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
        out = _dot(weight.astype(v.dtype), value[:, :, 0, keys], (4, 2), scores.dtype)
        outputs.append((out / total[..., None]).astype(q.dtype))
        lses.append(top + jnp.log(total))
    out = _time_major(jnp.concatenate(outputs, axis=3))
    lse = jnp.concatenate(lses, axis=3)
    return out, (q, k, v, sink_H, segment_ids_BT, mask_BTS, out, lse)


def _backward(scale, causal, window, blocks, saved, d_out):
    q, k, v, sink_H, segment_ids_BT, mask_BTS, out, lse = saved
    G = k.shape[2]
    query, key, value = _head_major(q, G), _head_major(k, G), _head_major(v, G)
    d_out_rows = _head_major(d_out, G)
    # sum_s p dp for each row, which is also sum_k out * d_out.
    mean = jnp.sum(_head_major(out, G).astype(lse.dtype) * d_out_rows.astype(lse.dtype), axis=-1)
    d_key, d_value = jnp.zeros(key[:, :, 0].shape, lse.dtype), jnp.zeros(value[:, :, 0].shape, lse.dtype)
    d_query = []
    masks = (segment_ids_BT, mask_BTS, causal, window)
    for rows, keys in _blocks(q.shape[1], k.shape[1], causal, window, blocks):
        scores = _scores(query, key, rows, keys, scale, masks)
        probs = jnp.exp(scores - lse[:, :, :, rows, None])
        d_rows = d_out_rows[:, :, :, rows]
        d_probs = _dot(d_rows, value[:, :, 0, keys], (4, 3), lse.dtype)
        d_scores = probs * (d_probs - mean[:, :, :, rows, None])
        d_scores = (d_scores * scale).astype(q.dtype)
        d_query.append(_dot(d_scores, key[:, :, 0, keys], (4, 2), q.dtype))
        d_key = d_key.at[:, :, keys].add(_dot_rows(d_scores, query[:, :, :, rows]))
        d_value = d_value.at[:, :, keys].add(_dot_rows(probs.astype(v.dtype), d_rows))
    d_sink_H = None
    if sink_H is not None:
        sink = sink_H.reshape(G, -1, 1).astype(lse.dtype)
        # The sink's value is zero, so its probability only loses: ds = p (0 - sum p dp).
        d_sink_H = -jnp.sum(jnp.exp(sink - lse) * mean, axis=(0, 3)).reshape(-1)
        d_sink_H = d_sink_H.astype(sink_H.dtype)
    return (
        _time_major(jnp.concatenate(d_query, axis=3)),
        d_key.astype(k.dtype).swapaxes(1, 2),
        d_value.astype(v.dtype).swapaxes(1, 2),
        d_sink_H,
        None,
        None,
    )


attention.defvjp(_forward, _backward)


def _blocks(T, S, causal, window, blocks):
    """Return (query slice, key slice) pairs that cover all visible pairs."""
    size = -(-T // blocks)
    pairs = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        first = max(start - window + 1, 0) if window else 0
        last = min(stop, S) if causal else S
        pairs.append((slice(start, stop), slice(min(first, last), last)))
    return pairs


def _scores(query, key, rows, keys, scale, masks):
    """Return one block's scaled scores, -inf where hidden: [B, G, R, t, s]."""
    segment_ids_BT, mask_BTS, causal, window = masks
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = scale * _dot(query[:, :, :, rows], key[:, :, 0, keys], (4, 3), wide)
    parts = []
    distance_ts = jnp.arange(rows.start, rows.stop)[:, None] - jnp.arange(keys.start, keys.stop)
    if causal:
        parts.append((distance_ts >= 0)[None])
    if window:
        parts.append((distance_ts < window)[None])
    if segment_ids_BT is not None:
        parts.append(segment_ids_BT[:, rows, None] == segment_ids_BT[:, None, keys])
    if mask_BTS is not None:
        parts.append((mask_BTS if mask_BTS.shape[1] == 1 else mask_BTS[:, rows])[:, :, keys])
    if not parts:
        return scores
    # Added, not selected: XLA's CPU backend fuses an addition into its matmul and softmax kernels.
    hidden = jnp.where(functools.reduce(jnp.logical_and, parts), 0.0, _NOTHING).astype(wide)
    return scores + hidden[:, None, None]


def _head_major(x_BTHK, G):
    """Return [B, G, H / G, T, K]."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)


def _time_major(x_BGRTK):
    B, G, R, T, K = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def _dot(left_BGRtx, right_BGsk, contract, dtype):
    """Multiply with batch axes B and G, contracting the given axes: [B, G, R, t, ...]."""
    return jax.lax.dot_general(
        left_BGRtx,
        right_BGsk,
        (((contract[0],), (contract[1],)), ((0, 1), (0, 1))),
        preferred_element_type=dtype,
    )


def _dot_rows(left_BGRts, right_BGRtk):
    """Sum over rows t of all R heads: [B, G, s, k], in float32 or wider."""
    wide = jnp.promote_types(left_BGRts.dtype, jnp.float32)
    return jax.lax.dot_general(
        left_BGRts, right_BGRtk, (((2, 3), (2, 3)), ((0, 1), (0, 1))), preferred_element_type=wide
    )
