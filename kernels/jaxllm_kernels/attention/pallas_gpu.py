"""Attention for NVIDIA GPUs from Ampere on: FlashAttention-2 in Pallas Triton, forward and backward.

A program holds one block of queries of one head and loops over the key blocks that it sees; those
that hide nothing skip the mask. Scores are in base 2, since exp2 is what the hardware has.
"""

import functools
import math

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm_kernels.attention.blocks import key_blocks, visit
from jaxllm_kernels.attention.cost import attention_cost
from jaxllm_kernels.attention.pallas_gpu_backward import backward as backward
from jaxllm_kernels.attention.pallas_gpu_tiles import (
    channels_loaded,
    load_block,
    load_rows,
    load_vector,
    masked_scores,
    padded,
    store_rows,
    tiles_for,
)
from jaxllm_kernels.attention.visibility import NOTHING
from jaxllm_kernels.compat import shape_like
from jaxllm_kernels.declared_cost import declared_cost

LOG2E = math.log2(math.e)


def forward(q, k, v, sink_H, segment_ids_BT, mask_BTS, *, scale, causal, window, interpret=False):
    """Return (output [B, T, H, K], logsumexp [B, H, T]); arguments as in `attention`, no mask."""
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    R = H // G
    segmented = segment_ids_BT is not None
    plain = not window and not segmented
    tiles = tiles_for(T, S, K, q.dtype.itemsize, backward=False, plain=plain)
    width = channels_loaded(K)
    if sink_H is None:
        sink_H = jnp.full(H, NOTHING, jnp.float32)
    operands = [q, k, v, sink_H.astype(jnp.float32)]
    query_spec = pl.BlockSpec((None, tiles.queries, None, width), lambda i, b, h: (b, i, h, 0))
    key_spec = pl.BlockSpec(
        (None, padded(S, tiles.keys), None, width), lambda i, b, h: (b, 0, h // R, 0)
    )
    in_specs = [query_spec, key_spec, key_spec, pl.BlockSpec((1,), lambda i, b, h: (h,))]
    if segment_ids_BT is not None:
        operands.append(segment_ids_BT)
        length = padded(T, max(tiles.queries, tiles.keys))
        in_specs.append(pl.BlockSpec((None, length), lambda i, b, h: (b, 0)))
    blocks = pl.cdiv(T, tiles.queries)
    call = pl.pallas_call(
        functools.partial(
            _kernel,
            tiles=tiles,
            T=T,
            S=S,
            K=K,
            scale=scale,
            causal=causal,
            window=window,
            segmented=segmented,
        ),
        grid=(blocks, B, H),
        in_specs=in_specs,
        out_specs=[
            query_spec,
            pl.BlockSpec((None, None, tiles.queries), lambda i, b, h: (b, h, i)),
        ],
        out_shape=[
            shape_like(q.shape, q.dtype, *operands),
            shape_like((B, H, blocks * tiles.queries), jnp.float32, *operands),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="attention_forward",
    )
    with declared_cost(attention_cost(q, k, tiles, causal=causal, window=window, products=2)):
        out, lse = call(*operands)
    return out, lse[:, :, :T]


def _kernel(q_ref, k_ref, v_ref, sink_ref, *refs, tiles, T, S, K, scale, causal, window, segmented):
    out_ref, lse_ref = refs[-2:]
    i = pl.program_id(0)
    t0 = i * tiles.queries
    query_tK = load_block(q_ref, t0, T, K)
    query_ids = load_vector(refs[0], t0, tiles.queries, T) if segmented else None
    sink = sink_ref[0] * LOG2E
    # See reference.attention_probs for why the maximum must include the sink.
    top_t = jnp.maximum(jnp.full(tiles.queries, NOTHING / 2, jnp.float32), sink)
    total_t = jnp.exp2(sink - top_t)
    sum_tK = jnp.zeros(query_tK.shape, jnp.float32)

    def keys_block(j, carry, masked):
        top_t, total_t, sum_tK = carry
        s0 = j * tiles.keys
        key_sK = load_rows(k_ref, s0, tiles.keys, S, K)
        ids = (query_ids, load_vector(refs[0], s0, tiles.keys, S)) if segmented else None
        scores_ts = masked_scores(
            query_tK, key_sK, scale * LOG2E, t0, s0,
            S=S, causal=causal, window=window, ids=ids, masked=masked,
        )  # fmt: skip
        new_top_t = jnp.maximum(top_t, jnp.max(scores_ts, axis=1))
        weight_ts = jnp.exp2(scores_ts - new_top_t[:, None])
        shrink_t = jnp.exp2(top_t - new_top_t)
        total_t = total_t * shrink_t + jnp.sum(weight_ts, axis=1)
        value_sK = load_rows(v_ref, s0, tiles.keys, S, K)
        new_tK = jnp.dot(weight_ts.astype(value_sK.dtype), value_sK, preferred_element_type=jnp.float32)
        return new_top_t, total_t, sum_tK * shrink_t[:, None] + new_tK

    top_t, total_t, sum_tK = visit(
        key_blocks(i, tiles.queries, tiles.keys, S, causal, window),
        keys_block,
        (top_t, total_t, sum_tK),
        all_masked=segmented,
        masked_first=bool(window),
        masked_last=causal or S % tiles.keys > 0,
    )
    total_t = jnp.maximum(total_t, jnp.finfo(jnp.float32).tiny)  # 0 where nothing is visible
    store_rows(out_ref, sum_tK / total_t[:, None], t0, T, K)
    lse_ref[...] = (top_t + jnp.log2(total_t)) * math.log(2)
