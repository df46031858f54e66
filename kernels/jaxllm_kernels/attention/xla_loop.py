"""Attention over long texts in loops over blocks of queries and keys, in plain XLA operations.

The blocks of scores that causality or the window hide are left out: the inner loop's bounds depend
on the outer loop's counter. Lengths are padded to whole blocks here, and cut again at the end.

Suffixes here: N rows, the query positions of all heads of a group, and s keys of one block.
"""

import jax
import jax.numpy as jnp
from jax.lax import dynamic_slice_in_dim, dynamic_update_slice_in_dim

from jaxllm_kernels.attention.layout import dot, for_rows
from jaxllm_kernels.attention.visibility import NOTHING
from jaxllm_kernels.compat import varying_like
from jaxllm_kernels.dtypes import widened

QUERIES, KEYS = 256, 512  # positions in a block
QUERIES_OF_ONE_HEAD = 512  # whose scores fit into a CPU's cache


def forward(query_BGRTK, key_BGSK, value_BGSK, *more, scale, causal, window):
    """Return (output [B, G, R, T, K], logsumexp [B, G, R, T]).

    Args:
      query_BGRTK, key_BGSK, value_BGSK: by groups of heads.
      more: sink_BGR if there is a sink, segment_ids_BT or None, mask_BTS or None.
    """
    *sink_BGR, segment_ids_BT, mask_BTS = more
    (B, G, R, T, K), S, dtype = query_BGRTK.shape, key_BGSK.shape[2], query_BGRTK.dtype
    wide, size = widened(dtype), _queries_block(B, G, T)
    query_BGRTK = _pad(query_BGRTK, 3, size)
    key_BGSK, value_BGSK = (_pad(x, 2, KEYS) for x in (key_BGSK, value_BGSK))
    hidden = _hider(T, S, segment_ids_BT, mask_BTS, causal, window, R, wide, size)
    first_top, first_total = jnp.full((B, G, R), NOTHING / 2, wide), jnp.zeros((B, G, R), wide)
    if sink_BGR:
        first_top = jnp.maximum(first_top, sink_BGR[0])
        first_total = jnp.exp(sink_BGR[0] - first_top)

    def queries_block(i):
        query_BGNK = _rows(query_BGRTK, i, size)
        N = query_BGNK.shape[2]

        def one_row_each(x_BGR):
            return jnp.repeat(x_BGR, size, axis=2)

        def keys_block(j, carry):
            top_BGN, total_BGN, sum_BGNK = carry
            key_BGsK = dynamic_slice_in_dim(key_BGSK, j * KEYS, KEYS, 2)
            value_BGsK = dynamic_slice_in_dim(value_BGSK, j * KEYS, KEYS, 2)
            scores_BGNs = dot(query_BGNK, key_BGsK, 3, 3, wide) * scale + hidden(i, j)[:, None]
            new_top_BGN = jnp.maximum(top_BGN, jnp.max(scores_BGNs, axis=-1))
            weight_BGNs = jnp.exp(scores_BGNs - new_top_BGN[..., None])
            shrink_BGN = jnp.exp(top_BGN - new_top_BGN)
            total_BGN = total_BGN * shrink_BGN + jnp.sum(weight_BGNs, axis=-1)
            new_BGNK = dot(weight_BGNs.astype(value_BGSK.dtype), value_BGsK, 3, 2, wide)
            return new_top_BGN, total_BGN, sum_BGNK * shrink_BGN[..., None] + new_BGNK

        carry = one_row_each(first_top), one_row_each(first_total), jnp.zeros((B, G, N, K), wide)
        carry = [varying_like(x, query_BGRTK, key_BGSK, value_BGSK) for x in carry]
        low, high = _key_blocks(i, size, key_BGSK.shape[2] // KEYS, causal, window)
        top_BGN, total_BGN, sum_BGNK = jax.lax.fori_loop(low, high, keys_block, tuple(carry))
        total_BGN = jnp.maximum(total_BGN, jnp.finfo(wide).tiny)  # 0 where nothing is visible
        out_BGNK = (sum_BGNK / total_BGN[..., None]).astype(dtype)
        lse_BGN = top_BGN + jnp.log(total_BGN)
        return out_BGNK.reshape(B, G, R, size, K), lse_BGN.reshape(B, G, R, size)

    blocks = query_BGRTK.shape[3] // size
    out, lse = jax.lax.map(queries_block, jnp.arange(blocks, dtype=jnp.int32))  # blocks first
    out_BGRTK = jnp.moveaxis(out, 0, 3).reshape(B, G, R, blocks * size, K)
    lse_BGRT = jnp.moveaxis(lse, 0, 3).reshape(B, G, R, blocks * size)
    return out_BGRTK[:, :, :, :T], lse_BGRT[..., :T]


def backward(
    query_BGRTK, key_BGSK, value_BGSK, d_out_BGRTK, lse_BGRT, mean_BGRT, segment_ids_BT, mask_BTS,
    *, scale, causal, window,
):  # fmt: skip
    """Return the cotangents of queries, keys and values, by groups of heads as they are."""
    (B, G, R, T, K), S, dtype = query_BGRTK.shape, key_BGSK.shape[2], query_BGRTK.dtype
    wide, size = lse_BGRT.dtype, _queries_block(B, G, T)
    query_BGRTK, d_out_BGRTK = (_pad(x, 3, size) for x in (query_BGRTK, d_out_BGRTK))
    key_BGSK, value_BGSK = (_pad(x, 2, KEYS) for x in (key_BGSK, value_BGSK))
    lse_BGRT1, mean_BGRT1 = (_pad(x[..., None], 3, size) for x in (lse_BGRT, mean_BGRT))
    like = query_BGRTK, key_BGSK, value_BGSK, d_out_BGRTK
    key_BGKS = key_BGSK.swapaxes(2, 3)
    hidden = _hider(T, S, segment_ids_BT, mask_BTS, causal, window, R, wide, size)

    def keys_block(d_query_BGKRT, j):
        key_BGsK = dynamic_slice_in_dim(key_BGSK, j * KEYS, KEYS, 2)
        key_BGKs = dynamic_slice_in_dim(key_BGKS, j * KEYS, KEYS, 3)
        value_BGsK = dynamic_slice_in_dim(value_BGSK, j * KEYS, KEYS, 2)

        def queries_block(i, carry):
            d_query_BGKRT, d_key_BGsK, d_value_BGsK = carry
            query_BGNK, d_out_BGNK = _rows(query_BGRTK, i, size), _rows(d_out_BGRTK, i, size)
            scores_BGsN = dot(key_BGsK, query_BGNK, 3, 3, wide) * scale
            scores_BGsN = scores_BGsN + hidden(i, j).swapaxes(1, 2)[:, None]
            probs_BGsN = jnp.exp(scores_BGsN - _rows(lse_BGRT1, i, size).swapaxes(2, 3))
            d_probs_BGsN = dot(value_BGsK, d_out_BGNK, 3, 3, wide)
            d_scores_BGsN = probs_BGsN * (d_probs_BGsN - _rows(mean_BGRT1, i, size).swapaxes(2, 3))
            d_scores_BGsN = d_scores_BGsN.astype(dtype)
            d_key_BGsK += dot(d_scores_BGsN, query_BGNK, 3, 2, wide)
            d_value_BGsK += dot(probs_BGsN.astype(value_BGSK.dtype), d_out_BGNK, 3, 2, wide)
            d_rows_BGKN = dot(key_BGKs, d_scores_BGsN, 3, 2, wide)
            so_far = dynamic_slice_in_dim(d_query_BGKRT, i * size, size, 4)
            d_query_BGKRT = dynamic_update_slice_in_dim(
                d_query_BGKRT, so_far + d_rows_BGKN.reshape(so_far.shape), i * size, 4
            )
            return d_query_BGKRT, d_key_BGsK, d_value_BGsK

        zeros = varying_like(jnp.zeros((B, G, KEYS, K), wide), *like)
        low, high = _query_blocks(j, size, query_BGRTK.shape[3] // size, causal, window)
        carry = jax.lax.fori_loop(low, high, queries_block, (d_query_BGKRT, zeros, zeros))
        return carry[0], ((carry[1] * scale).astype(key_BGSK.dtype), carry[2].astype(value_BGSK.dtype))

    blocks = key_BGSK.shape[2] // KEYS
    d_query_BGKRT = varying_like(jnp.zeros((B, G, K, R, query_BGRTK.shape[3]), wide), *like)
    d_query_BGKRT, gradients = jax.lax.scan(keys_block, d_query_BGKRT, jnp.arange(blocks, dtype=jnp.int32))
    d_key, d_value = (
        jnp.moveaxis(x, 0, 2).reshape(B, G, blocks * KEYS, K)[:, :, :S] for x in gradients
    )
    d_query_BGRTK = (d_query_BGKRT[..., :T] * scale).astype(dtype).transpose(0, 1, 3, 4, 2)
    return d_query_BGRTK, d_key, d_value


def _queries_block(B: int, G: int, T: int) -> int:
    """Return how many positions a block of queries has: of a token that is decoded, one."""
    return min(QUERIES_OF_ONE_HEAD if B * G == 1 else QUERIES, T)


def _key_blocks(i, size: int, blocks: int, causal: bool, window: int | None):
    """Return the range of key blocks that query block i sees something of."""
    low = jnp.maximum(i * size - window + 1, 0) // KEYS if window else 0
    high = jnp.minimum(((i + 1) * size + KEYS - 1) // KEYS, blocks) if causal else blocks
    return low, high


def _query_blocks(j, size: int, blocks: int, causal: bool, window: int | None):
    """Return the range of query blocks that see something of key block j."""
    low = j * KEYS // size if causal else 0
    last = (j + 1) * KEYS - 1 + (window or 0)  # the first query past all that see the block
    return low, jnp.minimum((last + size - 1) // size, blocks) if window else blocks


def _hider(T, S, segment_ids_BT, mask_BTS, causal, window, R, dtype, size):
    """Return (i, j) -> what to add to a block's scores, 0 or NOTHING: [1 or B, N, s]."""
    query_ids, key_ids = (
        None if segment_ids_BT is None else _pad(segment_ids_BT, 1, block) for block in (size, KEYS)
    )
    if mask_BTS is not None:
        mask_BTS = _pad(mask_BTS, 2, KEYS)
        mask_BTS = mask_BTS if mask_BTS.shape[1] == 1 else _pad(mask_BTS, 1, size)

    def hidden(i, j):
        t = i * size + jnp.arange(size, dtype=jnp.int32)[:, None]
        s = j * KEYS + jnp.arange(KEYS, dtype=jnp.int32)[None]
        seen = (s < S) & (t < T)
        if causal:
            seen = seen & (t >= s)
        if window:
            seen = seen & (t - s < window)
        seen = seen[None]
        if segment_ids_BT is not None:
            of_queries = dynamic_slice_in_dim(query_ids, i * size, size, 1)
            of_keys = dynamic_slice_in_dim(key_ids, j * KEYS, KEYS, 1)
            seen = seen & (of_queries[:, :, None] == of_keys[:, None])
        if mask_BTS is not None:
            part = dynamic_slice_in_dim(mask_BTS, j * KEYS, KEYS, 2)
            if part.shape[1] > 1:
                part = dynamic_slice_in_dim(part, i * size, size, 1)
            seen = seen & part
        return for_rows(jnp.where(seen, 0.0, NOTHING).astype(dtype), R)

    return hidden


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Append zeros up to a multiple of a length."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _rows(x_BGRTK: jax.Array, i, size: int) -> jax.Array:
    """Cut out a block of queries and stack the heads of a group: [B, G, N, K]."""
    block = dynamic_slice_in_dim(x_BGRTK, i * size, size, 3)
    B, G, R, t, K = block.shape
    return block.reshape(B, G, R * t, K)
