"""Linear cross-entropy for TPU in Pallas: logits live in VMEM, one block at a time.

`stats` streams blocks of the vocabulary past a block of tokens. `gradients` computes each block of
logits once more and multiplies it twice: a call holds the hidden states' gradient of as many tokens
as fit into VMEM, so it reads the weights and adds to their gradient once per call.

Logits lie vocabulary first, [v, n]: what is known of a token is a row of lanes, and sums over the
vocabulary are additions of whole registers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllm_kernels.compat import shape_like, varying_like
from jaxllm_kernels.linear_cross_entropy.options import MASKED, Options

LANES = 128
# VMEM is 128 MiB on v5e and v6e, 95 MiB on v5p and 64 MiB on TPU7x; the compiler's default limit
# for one kernel is 16 MiB or 32 MiB.
VMEM_BYTES = 56 * 2**20


class Blocks(NamedTuple):
    """Tokens and vocabulary columns a block, and tokens a call of `gradients`."""

    tokens: int
    vocab: int
    call_tokens: int


# Largest width to blocks. Reading the weights takes as long as multiplying them at 240 tokens on
# v5e and 570 on v6e; adding to their float32 gradient, at 400 and 950 tokens a call.
_STATS = {1024: Blocks(1024, 1024, 0), 2048: Blocks(1024, 512, 0), 4096: Blocks(1024, 256, 0),
          8192: Blocks(512, 256, 0)}  # fmt: skip
_GRADIENTS = {1024: Blocks(512, 1024, 2048), 2048: Blocks(512, 512, 1024), 4096: Blocks(256, 256, 512),
              8192: Blocks(256, 128, 256)}  # fmt: skip


def cannot(hidden, weights, options: Options) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    if hidden.dtype not in (jnp.bfloat16, jnp.float32):
        return f"hidden states are {hidden.dtype}, not bfloat16 or float32"
    if hidden.shape[-1] * hidden.dtype.itemsize > 2 * max(_STATS):
        return f"width {hidden.shape[-1]} in {hidden.dtype} exceeds {2 * max(_STATS)} bytes"
    return None


def _blocks(table, D: int, itemsize: int, N: int, V: int) -> Blocks:
    chosen = next(blocks for width, blocks in table.items() if D * itemsize <= 2 * width)
    tokens = min(chosen.tokens, LANES * pl.cdiv(N, LANES))
    calls = pl.cdiv(N, max(chosen.call_tokens, 1))
    call_tokens = tokens * pl.cdiv(pl.cdiv(N, calls), tokens)
    return Blocks(tokens, min(chosen.vocab, LANES * pl.cdiv(V, LANES)), call_tokens)


def stats(hidden_ND, weights, labels_N, limits_N, *, options: Options, interpret=False):
    """Return (logsumexp, label's logit), float32 [N] each.

    Args:
      hidden_ND: [N, D].
      weights: [D, V] or [V, D] in any dtype; multiplied in hidden's.
      labels_N: int32 [N]; one outside [0, V) has logit 0.
      limits_N: int32 [N], how many leading columns of the vocabulary a token has; V or more: all.
    """
    N, D = hidden_ND.shape
    weights = weights.astype(hidden_ND.dtype)
    V = weights.shape[options.vocab_axis]
    blocks = _blocks(_STATS, D, hidden_ND.dtype.itemsize, N, V)
    hidden_ND, ints_2N = _pad((hidden_ND, _stack(labels_N, jnp.minimum(limits_N, V))), N, blocks.tokens)
    padded = hidden_ND.shape[0]
    row = jax.ShapeDtypeStruct((1, padded), jnp.float32)
    row_spec = pl.BlockSpec((1, blocks.tokens), lambda i, j: (0, i))
    out = pl.pallas_call(
        functools.partial(_stats_kernel, options=options),
        grid=(padded // blocks.tokens, pl.cdiv(V, blocks.vocab)),
        in_specs=[
            pl.BlockSpec((blocks.tokens, D), lambda i, j: (i, 0)),
            _weights_spec(blocks.vocab, D, options, lambda i, j: j),
            pl.BlockSpec((2, blocks.tokens), lambda i, j: (0, i)),
        ],
        out_specs=[row_spec] * 2,
        out_shape=[shape_like(row.shape, row.dtype, hidden_ND, weights)] * 2,
        scratch_shapes=[pltpu.VMEM((1, blocks.tokens), jnp.float32)] * 3,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * N * V * D,
            transcendentals=N * V,
            bytes_accessed=hidden_ND.nbytes + padded // blocks.tokens * weights.nbytes,
        ),
        interpret=interpret,
        name="linear_cross_entropy_stats",
    )(hidden_ND, weights, ints_2N)
    return tuple(x_1N[0, :N] for x_1N in out)


def _stats_kernel(
    hidden_ref, weights_ref, ints_ref, lse_ref, label_ref, max_ref, sum_ref, label_sum_ref,
    *, options: Options,
):  # fmt: skip
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _start():
        max_ref[...] = jnp.full_like(max_ref, MASKED)
        for ref in (sum_ref, label_sum_ref):
            ref[...] = jnp.zeros_like(ref)

    logits_vn, is_label_vn = _logits(hidden_ref, weights_ref, ints_ref, j, options)
    max_1n = jnp.maximum(max_ref[...], jnp.max(logits_vn, axis=0, keepdims=True))
    sum_ref[...] = sum_ref[...] * jnp.exp(max_ref[...] - max_1n) + jnp.sum(
        jnp.exp(logits_vn - max_1n), axis=0, keepdims=True
    )
    max_ref[...] = max_1n
    label_sum_ref[...] += jnp.sum(jnp.where(is_label_vn, logits_vn, 0.0), axis=0, keepdims=True)

    @pl.when(j == pl.num_programs(1) - 1)
    def _finish():
        lse_ref[...] = max_ref[...] + jnp.log(sum_ref[...])
        label_ref[...] = label_sum_ref[...]


def gradients(hidden_ND, weights, labels_N, limits_N, lse_N, slopes, *, options, interpret=False):
    """Return (gradient of hidden in its dtype, of weights in float32).

    Args: as in `stats`, and
      lse_N: float32 [N], over the whole vocabulary where this is a shard.
      slopes: float32 [N] each: derivatives for logsumexp and label's logit.
    """
    N, D = hidden_ND.shape
    narrow = weights.astype(hidden_ND.dtype)
    V = weights.shape[options.vocab_axis]
    blocks = _blocks(_GRADIENTS, D, hidden_ND.dtype.itemsize, N, V)
    floats = _stack(lse_N, *slopes)
    ints = _stack(labels_N, jnp.minimum(limits_N, V))
    call_tokens = blocks.call_tokens
    # Padding has slopes 0, so it adds nothing.
    operands = _pad((hidden_ND, ints, floats), N, call_tokens)
    call = functools.partial(_gradients_call, narrow, blocks, options, interpret)
    d_weights = varying_like(jnp.zeros(weights.shape, jnp.float32), hidden_ND, weights)
    calls = operands[0].shape[0] // call_tokens
    if calls == 1:
        d_hidden_ND, d_weights = call(d_weights, *operands)
        return d_hidden_ND[:N], d_weights

    def step(d_weights, index):
        cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, index * call_tokens, call_tokens, axis)
        d_hidden_nD, d_weights = call(
            d_weights, cut(operands[0], 0), cut(operands[1], 1), cut(operands[2], 1)
        )
        return d_weights, d_hidden_nD

    d_weights, d_hidden_SnD = jax.lax.scan(step, d_weights, jnp.arange(calls, dtype=jnp.int32))
    return d_hidden_SnD.reshape(-1, D)[:N], d_weights


def _gradients_call(weights, blocks: Blocks, options, interpret, d_weights, hidden_SD, ints_2S, floats_3S):
    (S, D), V = hidden_SD.shape, weights.shape[options.vocab_axis]
    weights_spec = _weights_spec(blocks.vocab, D, options, lambda j, i: j)
    # A block of the weights' gradient is read before it is written, by the same program. (jax 0.10's
    # simulator returns an aliased output with its last block's padding.)
    aliases = {} if interpret and V % blocks.vocab else {4: 1}
    return pl.pallas_call(
        functools.partial(_gradients_kernel, options=options, V=V, tokens=blocks.tokens),
        grid=(pl.cdiv(V, blocks.vocab), S // blocks.tokens),
        in_specs=[
            pl.BlockSpec((blocks.tokens, D), lambda j, i: (i, 0)),
            weights_spec,
            pl.BlockSpec((2, blocks.tokens), lambda j, i: (0, i)),
            pl.BlockSpec((3, blocks.tokens), lambda j, i: (0, i)),
            weights_spec,
        ],
        out_specs=[pl.BlockSpec((S, D), lambda j, i: (0, 0)), weights_spec],
        out_shape=[
            shape_like(hidden_SD.shape, hidden_SD.dtype, hidden_SD, weights),
            shape_like(weights.shape, jnp.float32, hidden_SD, weights),
        ],
        scratch_shapes=[pltpu.VMEM((S, D), jnp.float32)],
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=6 * S * V * D,
            transcendentals=S * V,
            bytes_accessed=weights.nbytes + 2 * d_weights.nbytes
            + pl.cdiv(V, blocks.vocab) * hidden_SD.nbytes,
        ),
        interpret=interpret,
        name="linear_cross_entropy_gradients",
    )(hidden_SD, weights, ints_2S, floats_3S, d_weights)  # fmt: skip


def _gradients_kernel(
    hidden_ref, weights_ref, ints_ref, floats_ref, d_weights_in_ref, d_hidden_ref, d_weights_ref,
    d_hidden_sum_ref, *, options: Options, V, tokens,
):  # fmt: skip
    j, i = pl.program_id(0), pl.program_id(1)
    vocab_axis = options.vocab_axis
    rest = V % weights_ref.shape[vocab_axis]
    if rest:

        @pl.when(j == pl.num_programs(0) - 1)
        def _clear():  # what lies past the end may be NaN, and NaN * 0 is NaN
            columns = jax.lax.broadcasted_iota(jnp.int32, weights_ref.shape, vocab_axis)
            block = weights_ref[...]
            weights_ref[...] = jnp.where(columns < rest, block, jnp.zeros_like(block))

    logits_vn, is_label_vn = _logits(hidden_ref, weights_ref, ints_ref, j, options)
    lse_1n, *slopes = (floats_ref[k : k + 1, :] for k in range(3))
    d_logits_vn = options.d_logits(logits_vn, is_label_vn, lse_1n, slopes).astype(hidden_ref.dtype)

    more_nD = _dot(d_logits_vn, weights_ref[...], 0, vocab_axis)
    here = pl.ds(pl.multiple_of(i * tokens, tokens), tokens)
    d_hidden_sum_ref[here, :] = jnp.where(j == 0, 0.0, d_hidden_sum_ref[here, :]) + more_nD
    if vocab_axis == 0:
        piece = _dot(d_logits_vn, hidden_ref[...], 1, 0)
    else:
        piece = _dot(hidden_ref[...], d_logits_vn, 0, 1)

    @pl.when(i == 0)
    def _first():
        d_weights_ref[...] = d_weights_in_ref[...] + piece

    @pl.when(i != 0)
    def _later():
        d_weights_ref[...] += piece

    @pl.when(j == pl.num_programs(0) - 1)
    def _finish():
        d_hidden_ref[here, :] = d_hidden_sum_ref[here, :].astype(d_hidden_ref.dtype)


def _logits(hidden_ref, weights_ref, ints_ref, j, options: Options):
    """Return (logits [v, n] of block j of the vocabulary, where each is its token's label)."""
    logits_vn = _dot(weights_ref[...], hidden_ref[...], 1 - options.vocab_axis, 1)
    v = logits_vn.shape[0]
    columns_vn = j * v + jax.lax.broadcasted_iota(jnp.int32, logits_vn.shape, 0)
    exists_vn = columns_vn < ints_ref[1:2, :]
    is_label_vn = exists_vn & (columns_vn == ints_ref[0:1, :])
    return jnp.where(exists_vn, logits_vn, MASKED), is_label_vn


def _dot(left, right, left_axis, right_axis):
    return jax.lax.dot_general(
        left, right, (((left_axis,), (right_axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _weights_spec(vocab_block, D, options: Options, index):
    if options.vocab_axis == 0:
        return pl.BlockSpec((vocab_block, D), lambda *grid: (index(*grid), 0))
    return pl.BlockSpec((D, vocab_block), lambda *grid: (0, index(*grid)))


def _stack(*rows):
    return jnp.stack(jnp.broadcast_arrays(*rows))


def _pad(arrays, N: int, multiple: int):
    """Pad the axis of length N, the first of hidden and the last of the others, with zeros."""
    rest = -N % multiple
    if not rest:
        return arrays
    hidden, *others = arrays
    pad = [jnp.pad(x, ((0, 0), (0, rest))) for x in others]
    return jnp.pad(hidden, ((0, rest), (0, 0))), *pad
