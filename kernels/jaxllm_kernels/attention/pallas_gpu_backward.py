"""Attention's backward pass for NVIDIA GPUs: one kernel for queries, one for keys and values.

Both recompute the probabilities from the saved logsumexps.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm_kernels.attention.blocks import key_blocks, query_blocks, visit
from jaxllm_kernels.attention.cost import attention_cost
from jaxllm_kernels.attention.pallas_gpu_tiles import (
    channels_loaded,
    load_rows,
    load_vector,
    masked_scores,
    padded,
    store_rows,
    tiles_for,
)
from jaxllm_kernels.attention.xla import row_means, sink_gradient
from jaxllm_kernels.compat import shape_like
from jaxllm_kernels.declared_cost import declared_cost

LOG2E = math.log2(math.e)


def backward(
    q, k, v, sink_H, segment_ids_BT, mask_BTS, out, lse_BHT, d_out, d_lse_BHT,
    *, scale, causal, window, interpret=False,
):  # fmt: skip
    """Return the cotangents of q, k, v and sink_H; arguments as in `xla.backward`, no mask."""
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    R = H // G
    mean_BHT = row_means(out, d_out, d_lse_BHT)
    segmented = segment_ids_BT is not None
    plain = not window and not segmented
    tiles = tiles_for(T, S, K, q.dtype.itemsize, backward=True, plain=plain)
    width = channels_loaded(K)
    length_T, length_S = padded(T, tiles.queries), padded(S, tiles.keys)
    # Heads as [G, R], since a program of keys goes over all the query heads that read them.
    query_BTGRK, d_out_BTGRK = (x.reshape(B, T, G, R, K) for x in (q, d_out))
    lse_BGRT, mean_BGRT = ((x.reshape(B, G, R, T)) for x in (lse_BHT * LOG2E, mean_BHT))
    operands = [query_BTGRK, k, v, d_out_BTGRK, lse_BGRT, mean_BGRT]
    if segment_ids_BT is not None:
        operands.append(segment_ids_BT)
    options = dict(
        tiles=tiles, T=T, S=S, K=K, scale=scale, causal=causal, window=window,
        segmented=segmented,
    )  # fmt: skip

    def call(kernel, name, blocks, heads, one_head, products, out_shape, out_specs):
        """Run a kernel over (blocks, B, heads); refs are of one batch row and key head."""
        group = lambda h: h // R if one_head else h
        if one_head:
            queries = pl.BlockSpec(
                (None, length_T, None, None, width), lambda i, b, h: (b, 0, h // R, h % R, 0)
            )
            rows = pl.BlockSpec((None, None, None, length_T), lambda i, b, h: (b, h // R, h % R, 0))
        else:
            queries = pl.BlockSpec((None, length_T, None, R, width), lambda i, b, h: (b, 0, h, 0, 0))
            rows = pl.BlockSpec((None, None, R, length_T), lambda i, b, h: (b, h, 0, 0))
        keys = pl.BlockSpec((None, length_S, None, width), lambda i, b, h: (b, 0, group(h), 0))
        in_specs = [queries, keys, keys, queries, rows, rows]
        if segment_ids_BT is not None:
            in_specs.append(pl.BlockSpec((None, max(length_T, length_S)), lambda i, b, h: (b, 0)))
        run = pl.pallas_call(
            functools.partial(kernel, **options),
            grid=(blocks, B, heads),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
            interpret=interpret,
            name=name,
        )
        cost = attention_cost(q, k, tiles, causal=causal, window=window, products=products)
        with declared_cost(cost):
            return run(*operands)

    d_query = call(
        _query_kernel, "attention_backward_query", pl.cdiv(T, tiles.queries), H, True, 3,
        shape_like(q.shape, q.dtype, *operands),
        pl.BlockSpec((None, tiles.queries, None, width), lambda i, b, h: (b, i, h, 0)),
    )  # fmt: skip
    d_key, d_value = call(
        _key_kernel, "attention_backward_key", pl.cdiv(S, tiles.keys), G, False, 4,
        [shape_like(x.shape, x.dtype, *operands) for x in (k, v)],
        [pl.BlockSpec((None, tiles.keys, None, width), lambda i, b, h: (b, i, h, 0))] * 2,
    )  # fmt: skip
    return d_query, d_key, d_value, sink_gradient(sink_H, lse_BHT, mean_BHT)


def _query_kernel(
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, mean_ref, *refs,
    tiles, T, S, K, scale, causal, window, segmented,
):  # fmt: skip
    ids_ref, d_q_ref = refs[0], refs[-1]
    i = pl.program_id(0)
    t0 = i * tiles.queries
    query_tK, d_out_tK = (load_rows(x, t0, tiles.queries, T, K) for x in (q_ref, d_out_ref))
    lse_t, mean_t = (load_vector(x, t0, tiles.queries, T) for x in (lse_ref, mean_ref))
    query_ids = load_vector(ids_ref, t0, tiles.queries, T) if segmented else None

    def keys_block(j, sum_tK, masked):
        s0 = j * tiles.keys
        key_sK, value_sK = (load_rows(x, s0, tiles.keys, S, K) for x in (k_ref, v_ref))
        ids = (query_ids, load_vector(ids_ref, s0, tiles.keys, S)) if segmented else None
        _, d_scores_ts = _cotangent_of_scores(
            query_tK, key_sK, value_sK, d_out_tK, lse_t, mean_t, scale, t0, s0,
            S=S, causal=causal, window=window, ids=ids, masked=masked,
        )  # fmt: skip
        return sum_tK + jnp.dot(
            d_scores_ts.astype(key_sK.dtype), key_sK, preferred_element_type=jnp.float32
        )

    sum_tK = visit(
        key_blocks(i, tiles.queries, tiles.keys, S, causal, window),
        keys_block,
        jnp.zeros(query_tK.shape, jnp.float32),
        all_masked=segmented,
        masked_first=bool(window),
        masked_last=causal or S % tiles.keys > 0,
    )
    store_rows(d_q_ref, sum_tK * scale, t0, T, K)


def _key_kernel(
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, mean_ref, *refs,
    tiles, T, S, K, scale, causal, window, segmented,
):  # fmt: skip
    ids_ref, (d_k_ref, d_v_ref) = refs[0], refs[-2:]
    j = pl.program_id(0)
    s0 = j * tiles.keys
    key_sK, value_sK = (load_rows(x, s0, tiles.keys, S, K) for x in (k_ref, v_ref))
    key_ids = load_vector(ids_ref, s0, tiles.keys, S) if segmented else None

    def one_head(r, sums):
        def queries_block(i, sums, masked):
            d_key_sK, d_value_sK = sums
            t0 = i * tiles.queries
            query_tK, d_out_tK = (load_rows(x, t0, tiles.queries, T, K, (r,)) for x in (q_ref, d_out_ref))
            lse_t, mean_t = (load_vector(x, t0, tiles.queries, T, (r,)) for x in (lse_ref, mean_ref))
            ids = (load_vector(ids_ref, t0, tiles.queries, T), key_ids) if segmented else None
            probs_ts, d_scores_ts = _cotangent_of_scores(
                query_tK, key_sK, value_sK, d_out_tK, lse_t, mean_t, scale, t0, s0,
                S=S, causal=causal, window=window, ids=ids, masked=masked,
            )  # fmt: skip
            d_value_sK += jnp.dot(
                probs_ts.astype(d_out_tK.dtype).T, d_out_tK, preferred_element_type=jnp.float32
            )
            d_key_sK += jnp.dot(
                d_scores_ts.astype(query_tK.dtype).T, query_tK, preferred_element_type=jnp.float32
            )
            return d_key_sK, d_value_sK

        return visit(
            query_blocks(j, tiles.queries, tiles.keys, T, causal, window),
            queries_block,
            sums,
            all_masked=segmented,
            masked_first=causal,
            masked_last=bool(window),
        )

    zeros = jnp.zeros(key_sK.shape, jnp.float32)
    d_key_sK, d_value_sK = lax.fori_loop(0, q_ref.shape[1], one_head, (zeros, zeros))
    store_rows(d_k_ref, d_key_sK * scale, s0, S, K)
    store_rows(d_v_ref, d_value_sK, s0, S, K)


def _cotangent_of_scores(
    query_tK, key_sK, value_sK, d_out_tK, lse2_t, mean_t, scale, t0, s0, **hiding
):
    """Return the probabilities of one block and the cotangents of its scores."""
    scores_ts = masked_scores(query_tK, key_sK, scale * LOG2E, t0, s0, **hiding)
    probs_ts = jnp.exp2(scores_ts - lse2_t[:, None])
    d_probs_ts = jnp.dot(d_out_tK, value_sK.T, preferred_element_type=jnp.float32)
    return probs_ts, probs_ts * (d_probs_ts - mean_t[:, None])
