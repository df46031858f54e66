"""Attention's backward pass for TPU: one kernel for queries, one for keys and values.

Both recompute the probabilities, keys first, from the saved logsumexps. As in the forward pass the
blocks that are looped over lie in panels that are read once if they fit.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllm_kernels.attention.blocks import divide, key_blocks, query_blocks, visit
from jaxllm_kernels.attention.cost import attention_cost
from jaxllm_kernels.attention.layout import by_group, by_time
from jaxllm_kernels.attention.pallas_tpu_tiles import (
    LOG2E,
    key_ids_column,
    masked_scores,
    panel_index,
    rows_below,
    rows_of_blocks,
    tiles_for,
)
from jaxllm_kernels.attention.xla import row_means, sink_gradient
from jaxllm_kernels.compat import shape_like


def backward(
    q, k, v, sink_H, segment_ids_BT, mask_BTS, out, lse_BHT, d_out, d_lse_BHT,
    *, scale, causal, window, interpret=False,
):  # fmt: skip
    """Return the cotangents of q, k, v and sink_H; arguments as in `xla.backward`, no mask."""
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    R = H // G
    tiles = tiles_for(T, S, R, K, q.dtype.itemsize)
    mean_BHT = row_means(out, d_out, d_lse_BHT)
    arrays = [by_group(q, G), k.swapaxes(1, 2), v.swapaxes(1, 2), by_group(d_out, G)]
    arrays += [
        rows_of_blocks(x.reshape(B, G, R, T), tiles.queries, tiles.query_panel)
        for x in (lse_BHT * LOG2E, mean_BHT)
    ]
    if segment_ids_BT is not None:
        arrays += [
            rows_of_blocks(segment_ids_BT, tiles.queries, tiles.query_panel),
            rows_of_blocks(segment_ids_BT, tiles.keys, tiles.key_panel),
        ]
    options = dict(
        tiles=tiles, scale=scale, causal=causal, window=window, segmented=segment_ids_BT is not None
    )
    call = functools.partial(_call, arrays, tiles, options, interpret)
    cost = functools.partial(attention_cost, q, k, tiles, causal=causal, window=window)
    d_query = call(_query_kernel, "attention_backward_query", cost(products=3), by_queries=True)
    d_key, d_value = call(_key_kernel, "attention_backward_key", cost(products=4), by_queries=False)
    return (
        by_time(d_query),
        d_key.swapaxes(1, 2),
        d_value.swapaxes(1, 2),
        sink_gradient(sink_H, lse_BHT, mean_BHT),
    )


def _call(arrays, tiles, options, interpret, kernel, name, cost, *, by_queries):
    """Run one of the kernels: `by_queries` over blocks of queries with keys in panels, or reversed."""
    (B, G, R, T, K), S = arrays[0].shape, arrays[1].shape[2]
    causal, window = options["causal"], options["window"]
    if by_queries:
        blocks, panels = pl.cdiv(T, tiles.queries), pl.cdiv(S, tiles.key_panel)
        queries, query_rows, keys, key_rows = tiles.queries, 1, tiles.key_panel, tiles.key_blocks
        of_keys = functools.partial(panel_index, tiles=tiles, S=S, causal=causal, window=window)
        of_queries = lambda block, panel: block
    else:
        blocks, panels = pl.cdiv(S, tiles.keys), pl.cdiv(T, tiles.query_panel)
        queries, query_rows, keys, key_rows = tiles.query_panel, tiles.query_blocks, tiles.keys, 1
        of_keys = lambda block, panel: block
        of_queries = functools.partial(
            _query_panel_index, tiles=tiles, T=T, causal=causal, window=window
        )
    query_spec = pl.BlockSpec((1, 1, R, queries, K), lambda b, g, i, p: (b, g, 0, of_queries(i, p), 0))
    key_spec = pl.BlockSpec((1, 1, keys, K), lambda b, g, i, p: (b, g, of_keys(i, p), 0))
    row_spec = pl.BlockSpec(
        (1, 1, R, query_rows, 1, tiles.queries), lambda b, g, i, p: (b, g, 0, of_queries(i, p), 0, 0)
    )
    in_specs = [query_spec, key_spec, key_spec, query_spec, row_spec, row_spec]
    if options["segmented"]:
        in_specs += [
            pl.BlockSpec((1, query_rows, 1, tiles.queries), lambda b, g, i, p: (b, of_queries(i, p), 0, 0)),
            pl.BlockSpec((1, key_rows, 1, tiles.keys), lambda b, g, i, p: (b, of_keys(i, p), 0, 0)),
        ]
    query, key, value = arrays[:3]
    if by_queries:
        out_shape, out_specs = shape_like(query.shape, query.dtype, *arrays), query_spec
        scratch = [pltpu.VMEM((R, tiles.queries, K), jnp.float32)]
    else:
        out_shape = [shape_like(x.shape, x.dtype, *arrays) for x in (key, value)]
        out_specs = [key_spec, key_spec]
        scratch = [pltpu.VMEM((tiles.keys, K), jnp.float32)] * 2
    return pl.pallas_call(
        functools.partial(kernel, T=T, S=S, **options),
        grid=(B, G, blocks, panels),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )(*arrays)


def _query_panel_index(j, panel, *, tiles, T, causal, window):
    """Return the panel of queries for a step of key block j, as `panel_index` does of keys."""
    if T <= tiles.query_panel:
        return 0
    visits = query_blocks(j, tiles.queries, tiles.keys, T, causal, window)
    panels = pl.cdiv(T, tiles.query_panel)
    first = jnp.minimum(divide(jnp.int32(visits.first), tiles.query_blocks), panels - 1)
    last = jnp.clip(divide(jnp.int32(visits.stop) - 1, tiles.query_blocks), first, panels - 1)
    return jnp.clip(panel, first, last)


def _query_kernel(
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, mean_ref, *refs, tiles, T, S, scale, causal, window, segmented
):
    query_ids_ref, key_ids_ref = refs[:2] if segmented else (None, None)
    d_q_ref, sum_ref = refs[-2:]
    R = q_ref.shape[2]
    i, panel = pl.program_id(2), pl.program_id(3)
    first_block = panel * tiles.key_blocks

    @pl.when(panel == 0)
    def _start():
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    def keys_block(j, carry, masked):
        here = pl.ds(pl.multiple_of((j - first_block) * tiles.keys, tiles.keys), tiles.keys)
        key_sK, value_sK = k_ref[0, 0, here, :], v_ref[0, 0, here, :]
        if masked and S % tiles.keys:  # what lies past the end may be NaN
            key_sK, value_sK = (rows_below(x, S - j * tiles.keys) for x in (key_sK, value_sK))
        ids = None
        if segmented:
            ids = query_ids_ref[0, 0], key_ids_column(key_ids_ref[0, j - first_block])
        for r in range(R):
            _, d_scores_st = _cotangent_of_scores(
                key_sK, value_sK, q_ref[0, 0, r], d_out_ref[0, 0, r], lse_ref[0, 0, r, 0],
                mean_ref[0, 0, r, 0], scale, i * tiles.queries, j * tiles.keys,
                S=S, causal=causal, window=window, ids=ids, masked=masked,
            )  # fmt: skip
            sum_ref[r] += jax.lax.dot_general(
                d_scores_st.astype(key_sK.dtype), key_sK, (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )  # fmt: skip
        return carry

    visit(
        key_blocks(i, tiles.queries, tiles.keys, S, causal, window),
        keys_block,
        0,
        all_masked=segmented,
        masked_first=bool(window),
        masked_last=causal or S % tiles.keys > 0,
        within=(first_block, first_block + tiles.key_blocks),
    )

    @pl.when(panel == pl.num_programs(3) - 1)
    def _finish():
        d_q_ref[0, 0] = (sum_ref[...] * scale).astype(d_q_ref.dtype)


def _key_kernel(
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, mean_ref, *refs, tiles, T, S, scale, causal, window, segmented
):
    query_ids_ref, key_ids_ref = refs[:2] if segmented else (None, None)
    d_k_ref, d_v_ref, key_sum_ref, value_sum_ref = refs[-4:]
    R = q_ref.shape[2]
    j, panel = pl.program_id(2), pl.program_id(3)
    first_block = panel * tiles.query_blocks

    @pl.when(panel == 0)
    def _start():
        key_sum_ref[...] = jnp.zeros(key_sum_ref.shape, jnp.float32)
        value_sum_ref[...] = jnp.zeros(value_sum_ref.shape, jnp.float32)

    def queries_block(i, carry, masked):
        local = i - first_block
        here = pl.ds(pl.multiple_of(local * tiles.queries, tiles.queries), tiles.queries)
        key_sK, value_sK = k_ref[0, 0], v_ref[0, 0]
        ids = None
        if segmented:
            ids = query_ids_ref[0, local], key_ids_column(key_ids_ref[0, 0])
        for r in range(R):
            query_tK, d_out_tK = q_ref[0, 0, r, here, :], d_out_ref[0, 0, r, here, :]
            if T % tiles.queries:  # what lies past the end may be NaN
                query_tK, d_out_tK = (rows_below(x, T - i * tiles.queries) for x in (query_tK, d_out_tK))
            probs_st, d_scores_st = _cotangent_of_scores(
                key_sK, value_sK, query_tK, d_out_tK, lse_ref[0, 0, r, local],
                mean_ref[0, 0, r, local], scale, i * tiles.queries, j * tiles.keys,
                S=S, causal=causal, window=window, ids=ids, masked=masked,
            )  # fmt: skip
            value_sum_ref[...] += jnp.dot(
                probs_st.astype(d_out_tK.dtype), d_out_tK, preferred_element_type=jnp.float32
            )
            key_sum_ref[...] += jnp.dot(
                d_scores_st.astype(query_tK.dtype), query_tK, preferred_element_type=jnp.float32
            )
        return carry

    visit(
        query_blocks(j, tiles.queries, tiles.keys, T, causal, window),
        queries_block,
        0,
        all_masked=segmented,
        masked_first=causal,
        masked_last=bool(window),
        within=(first_block, first_block + tiles.query_blocks),
    )

    @pl.when(panel == pl.num_programs(3) - 1)
    def _finish():
        d_k_ref[0, 0] = (key_sum_ref[...] * scale).astype(d_k_ref.dtype)
        d_v_ref[0, 0] = value_sum_ref[...].astype(d_v_ref.dtype)


def _cotangent_of_scores(
    key_sK, value_sK, query_tK, d_out_tK, lse2_1t, mean_1t, scale, first_query, first_key, **hiding
):
    """Return the probabilities of one block, keys first, and the cotangents of its scores."""
    scores_st = masked_scores(key_sK, query_tK, scale * LOG2E, first_query, first_key, **hiding)
    probs_st = jnp.exp2(scores_st - lse2_1t)
    d_probs_st = jax.lax.dot_general(
        value_sK, d_out_tK, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return probs_st, probs_st * (d_probs_st - mean_1t)
