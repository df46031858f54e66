"""Attention for TPU: FlashAttention-2 (arXiv 2307.08691) in Pallas, forward and backward.

A program holds one block of queries (all heads of a group) and as many keys as fit, a panel, and
loops over the blocks of keys in it; so keys and values that fit are read from HBM once a group.
Panels that causality or the window hide are never read, and blocks that hide nothing skip the mask.

Scores lie keys first, [s, t]: a row's maximum and sum then are reductions over sublanes, and
logsumexps are rows of lanes, stored without padding. Scores are in base 2, since exp2 is what the
hardware has.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllm_kernels.attention.blocks import key_blocks, visit
from jaxllm_kernels.attention.cost import attention_cost
from jaxllm_kernels.attention.layout import by_group, by_time
from jaxllm_kernels.attention.pallas_tpu_backward import backward as backward
from jaxllm_kernels.attention.pallas_tpu_tiles import (
    LANES,
    LOG2E,
    Tiles,
    key_ids_column,
    masked_scores,
    panel_index,
    rows_below,
    rows_of_blocks,
    tiles_for,
)
from jaxllm_kernels.attention.visibility import NOTHING
from jaxllm_kernels.compat import shape_like


def cannot(q) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    if q.dtype == jnp.float16:
        return "TPUs have no float16"
    return None


def forward(q, k, v, sink_H, segment_ids_BT, mask_BTS, *, scale, causal, window, interpret=False):
    """Return (output [B, T, H, K], logsumexp [B, H, T]); arguments as in `attention`, no mask."""
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    R = H // G
    tiles = tiles_for(T, S, R, K, q.dtype.itemsize)
    if sink_H is None:
        sink_H = jnp.full(H, NOTHING, jnp.float32)
    sink2_GR1x = jnp.broadcast_to(
        (sink_H.astype(jnp.float32) * LOG2E).reshape(G, R, 1, 1), (G, R, 1, LANES)
    )
    operands = [by_group(q, G), k.swapaxes(1, 2), v.swapaxes(1, 2), sink2_GR1x]
    key_panel = functools.partial(panel_index, tiles=tiles, S=S, causal=causal, window=window)

    def query_map(b, g, i, p):
        return b, g, 0, i, 0

    def key_map(b, g, i, p):
        return b, g, key_panel(i, p), 0

    in_specs = [
        pl.BlockSpec((1, 1, R, tiles.queries, K), query_map),
        pl.BlockSpec((1, 1, tiles.key_panel, K), key_map),
        pl.BlockSpec((1, 1, tiles.key_panel, K), key_map),
        pl.BlockSpec((1, R, 1, LANES), lambda b, g, i, p: (g, 0, 0, 0)),
    ]
    if segment_ids_BT is not None:
        operands += [
            rows_of_blocks(segment_ids_BT, tiles.queries),
            rows_of_blocks(segment_ids_BT, tiles.keys, tiles.key_panel),
        ]
        in_specs += [
            pl.BlockSpec((1, 1, 1, tiles.queries), lambda b, g, i, p: (b, i, 0, 0)),
            pl.BlockSpec(
                (1, tiles.key_blocks, 1, tiles.keys), lambda b, g, i, p: (b, key_panel(i, p), 0, 0)
            ),
        ]
    blocks, panels = pl.cdiv(T, tiles.queries), pl.cdiv(S, tiles.key_panel)
    out_BGRTK, lse_BGRi1t = pl.pallas_call(
        functools.partial(
            _kernel,
            tiles=tiles,
            S=S,
            scale=scale,
            causal=causal,
            window=window,
            segmented=segment_ids_BT is not None,
        ),
        grid=(B, G, blocks, panels),
        in_specs=in_specs,
        out_specs=[
            pl.BlockSpec((1, 1, R, tiles.queries, K), query_map),
            pl.BlockSpec((1, 1, R, 1, 1, tiles.queries), lambda b, g, i, p: (b, g, 0, i, 0, 0)),
        ],
        out_shape=[
            shape_like((B, G, R, T, K), q.dtype, *operands),
            shape_like((B, G, R, blocks, 1, tiles.queries), jnp.float32, *operands),
        ],
        scratch_shapes=[
            pltpu.VMEM((R, 1, tiles.queries), jnp.float32),  # maximum so far
            pltpu.VMEM((R, 1, tiles.queries), jnp.float32),  # sum so far
            pltpu.VMEM((R, K, tiles.queries), jnp.float32),  # output so far
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=attention_cost(q, k, tiles, causal=causal, window=window, products=2),
        interpret=interpret,
        name="attention_forward",
    )(*operands)
    return by_time(out_BGRTK), lse_BGRi1t.reshape(B, H, -1)[:, :, :T]


def _kernel(q_ref, k_ref, v_ref, sink_ref, *refs, tiles: Tiles, S, scale, causal, window, segmented):
    query_ids_ref, key_ids_ref = refs[:2] if segmented else (None, None)
    out_ref, lse_ref, top_ref, total_ref, sum_ref = refs[-5:]
    R = q_ref.shape[2]
    i, panel = pl.program_id(2), pl.program_id(3)
    first_block = panel * tiles.key_blocks

    @pl.when(panel == 0)
    def _start():
        for r in range(R):
            sink_1t = jnp.tile(sink_ref[0, r], (1, tiles.queries // LANES))
            # See reference.attention_probs for why the maximum must include the sink.
            top_ref[r] = jnp.maximum(sink_1t, NOTHING / 2)
            total_ref[r] = jnp.exp2(sink_1t - top_ref[r])
            sum_ref[r] = jnp.zeros(sum_ref.shape[1:], jnp.float32)

    def keys_block(j, carry, masked):
        here = pl.ds(pl.multiple_of((j - first_block) * tiles.keys, tiles.keys), tiles.keys)
        key_sK, value_sK = k_ref[0, 0, here, :], v_ref[0, 0, here, :]
        if masked and S % tiles.keys:  # what lies past the end may be NaN
            key_sK, value_sK = (rows_below(x, S - j * tiles.keys) for x in (key_sK, value_sK))
        ids = None
        if segmented:
            ids = query_ids_ref[0, 0], key_ids_column(key_ids_ref[0, j - first_block])
        for r in range(R):
            scores_st = masked_scores(
                key_sK, q_ref[0, 0, r], scale * LOG2E, i * tiles.queries, j * tiles.keys,
                S=S, causal=causal, window=window, ids=ids, masked=masked,
            )  # fmt: skip
            top_1t = jnp.maximum(top_ref[r], jnp.max(scores_st, axis=0, keepdims=True))
            weight_st = jnp.exp2(scores_st - top_1t)
            shrink_1t = jnp.exp2(top_ref[r] - top_1t)
            top_ref[r] = top_1t
            total_ref[r] = total_ref[r] * shrink_1t + jnp.sum(weight_st, axis=0, keepdims=True)
            sum_ref[r] = sum_ref[r] * shrink_1t + jax.lax.dot_general(
                value_sK, weight_st.astype(value_sK.dtype), (((0,), (0,)), ((), ())),
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
        for r in range(R):
            total_1t = jnp.maximum(total_ref[r], jnp.finfo(jnp.float32).tiny)
            out_ref[0, 0, r] = (sum_ref[r] / total_1t).T.astype(out_ref.dtype)
            lse_ref[0, 0, r, 0] = top_ref[r] * math.log(2) + jnp.log(total_1t)
