"""Linear cross-entropy for NVIDIA GPUs from Ampere on, in Pallas Triton.

`stats` keeps logits in registers: a program holds a block of tokens and streams its share of the
vocabulary past it. A block of the hidden states' gradient does not fit into registers, so
`gradients` writes the logits' gradient, in the hidden states' type, for a slice of the vocabulary
at a time, and leaves the two products with it to the library of matmuls.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm_kernels.compat import dot_general_float32, shape_like, varying_like
from jaxllm_kernels.declared_cost import declared_cost
from jaxllm_kernels.linear_cross_entropy.options import MASKED, Options

SLICE_BYTES = 128 * 2**20  # of the logits' gradient at a time
PROGRAMS = 1024  # enough to keep 132 multiprocessors busy to the end


class Tiles(NamedTuple):
    """Tokens, vocabulary columns and channels of a tile; Triton's warps and pipeline stages."""

    tokens: int
    vocab: int
    channels: int
    warps: int
    stages: int


# Item size to the tiles that an H100 runs fastest of those that do not spill on it or on an A100.
_TILES = {2: Tiles(128, 128, 64, 8, 4), 4: Tiles(64, 128, 32, 8, 2)}


def cannot(hidden, weights, options: Options) -> str | None:
    """Return why the kernels cannot run a call, or None if they can."""
    if hidden.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"hidden states are {hidden.dtype}, not bfloat16, float16 or float32"
    return None


def _tiles(hidden_ND) -> Tiles:
    return _TILES[hidden_ND.dtype.itemsize]


def stats(hidden_ND, weights, labels_N, limits_N, *, options: Options, interpret=False):
    """Return (logsumexp, label's logit), float32 [N] each.

    Args: as in `pallas_tpu.stats`.
    """
    N, D = hidden_ND.shape
    weights = weights.astype(hidden_ND.dtype)
    V = weights.shape[options.vocab_axis]
    tiles = _tiles(hidden_ND)
    token_blocks, vocab_blocks = pl.cdiv(N, tiles.tokens), pl.cdiv(V, tiles.vocab)
    each = pl.cdiv(vocab_blocks, min(pl.cdiv(PROGRAMS, token_blocks), vocab_blocks))
    splits = pl.cdiv(vocab_blocks, each)
    ints = labels_N, jnp.minimum(limits_N, V), jnp.zeros_like(labels_N)
    partial = shape_like((splits, token_blocks * tiles.tokens), jnp.float32, hidden_ND, weights)
    call = pl.pallas_call(
        functools.partial(_stats_kernel, options=options, tiles=tiles, each=each, N=N, V=V, D=D),
        grid=(token_blocks, splits),
        in_specs=[
            _hidden_spec(hidden_ND, tiles),
            _whole_spec(weights, options, tiles),
            *[pl.BlockSpec((tiles.tokens,), lambda i, s: (i,))] * len(ints),
        ],
        out_specs=[pl.BlockSpec((None, tiles.tokens), lambda i, s: (s, i))] * 2,
        out_shape=[partial] * 2,
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="linear_cross_entropy_stats",
    )
    with declared_cost(_cost(N, D, V, hidden_ND.dtype.itemsize, 0)):
        lse_SN, label_SN = call(hidden_ND, weights, *ints)
    return jax.nn.logsumexp(lse_SN, axis=0)[:N], jnp.sum(label_SN, axis=0)[:N]


def _stats_kernel(
    hidden_ref, weights_ref, labels_ref, limits_ref, firsts_ref, lse_ref, label_ref,
    *, options: Options, tiles: Tiles, each, N, V, D,
):  # fmt: skip
    i, split = pl.program_id(0), pl.program_id(1)
    ints = _of_tokens((labels_ref, limits_ref, firsts_ref), i, tiles, N)

    def block(j, carry):
        max_n, sum_n, label_n = carry
        logits_nv, is_label_nv = _logits(hidden_ref, weights_ref, ints, i, j, options, tiles, N, V, D)
        higher_n = jnp.maximum(max_n, jnp.max(logits_nv, axis=1))
        sum_n = sum_n * jnp.exp(max_n - higher_n)
        sum_n += jnp.sum(jnp.exp(logits_nv - higher_n[:, None]), axis=1)
        label_n += jnp.sum(jnp.where(is_label_nv, logits_nv, 0.0), axis=1)
        return higher_n, sum_n, label_n

    zero_n = jnp.zeros(tiles.tokens, jnp.float32)
    last = jnp.minimum((split + 1) * each, pl.cdiv(V, tiles.vocab))
    carry = (jnp.full(tiles.tokens, MASKED, jnp.float32), zero_n, zero_n)
    max_n, sum_n, label_n = jax.lax.fori_loop(split * each, last, block, carry)
    lse_ref[...] = max_n + jnp.log(sum_n)
    label_ref[...] = label_n


def gradients(hidden_ND, weights, labels_N, limits_N, lse_N, slopes, *, options, interpret=False):
    """Return (gradient of hidden in its dtype, of weights in float32).

    Args: as in `pallas_tpu.gradients`.
    """
    N, D = hidden_ND.shape
    vocab_axis, tile = options.vocab_axis, _tiles(hidden_ND).vocab
    V = weights.shape[vocab_axis]
    most = max(SLICE_BYTES // (N * hidden_ND.dtype.itemsize) // tile * tile, tile)
    width = min(pl.cdiv(pl.cdiv(V, pl.cdiv(V, most)), tile) * tile, V)

    def step(carry, new):
        d_hidden_ND, d_weights = carry
        # The last slice is moved back to end with the vocabulary; what it sees again counts once.
        start = jnp.minimum(new, V - width)
        narrow = jax.lax.dynamic_slice_in_dim(weights, start, width, vocab_axis)
        narrow = narrow.astype(hidden_ND.dtype)
        firsts_N = jnp.full_like(labels_N, new - start)
        ints = labels_N - start, jnp.minimum(limits_N - start, width), firsts_N
        d_logits_NW = _d_logits(hidden_ND, narrow, (*ints, lse_N, *slopes), options, interpret)
        d_hidden_ND += dot_general_float32(d_logits_NW, narrow, (((1,), (vocab_axis,)), ((), ())))
        pair = (d_logits_NW, hidden_ND) if vocab_axis == 0 else (hidden_ND, d_logits_NW)
        piece = dot_general_float32(*pair, (((0,), (0,)), ((), ())))
        if V % width:
            piece += jax.lax.dynamic_slice_in_dim(d_weights, start, width, vocab_axis)
        d_weights = jax.lax.dynamic_update_slice_in_dim(d_weights, piece, start, vocab_axis)
        return (d_hidden_ND, d_weights), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (hidden_ND, weights)]
    zeros = tuple(varying_like(x, hidden_ND, weights) for x in zeros)
    (d_hidden_ND, d_weights), _ = jax.lax.scan(step, zeros, jnp.arange(0, V, width, dtype=jnp.int32))
    return d_hidden_ND.astype(hidden_ND.dtype), d_weights


def _d_logits(hidden_ND, weights, of_tokens, options: Options, interpret):
    """Return the loss's derivative for the logits of a slice of the vocabulary, [N, its width]."""
    (N, D), V = hidden_ND.shape, weights.shape[options.vocab_axis]
    tiles = _tiles(hidden_ND)
    call = pl.pallas_call(
        functools.partial(_d_logits_kernel, options=options, tiles=tiles, N=N, V=V, D=D),
        grid=(pl.cdiv(N, tiles.tokens), pl.cdiv(V, tiles.vocab)),
        in_specs=[
            _hidden_spec(hidden_ND, tiles),
            _whole_spec(weights, options, tiles),
            *[pl.BlockSpec((tiles.tokens,), lambda i, j: (i,))] * len(of_tokens),
        ],
        out_specs=pl.BlockSpec((tiles.tokens, tiles.vocab), lambda i, j: (i, j)),
        out_shape=shape_like((N, V), hidden_ND.dtype, hidden_ND, weights),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="linear_cross_entropy_d_logits",
    )
    with declared_cost(_cost(N, D, V, hidden_ND.dtype.itemsize, N * V)):
        return call(hidden_ND, weights, *of_tokens)


def _d_logits_kernel(hidden_ref, weights_ref, *refs, options: Options, tiles: Tiles, N, V, D):
    *of_tokens, out_ref = refs
    i, j = pl.program_id(0), pl.program_id(1)
    *ints, lse_n1, by_lse_n1, by_label_n1 = _of_tokens(of_tokens, i, tiles, N)
    logits_nv, is_label_nv = _logits(hidden_ref, weights_ref, ints, i, j, options, tiles, N, V, D)
    d_logits_nv = options.d_logits(logits_nv, is_label_nv, lse_n1, (by_lse_n1, by_label_n1))
    tokens = _inside(i * tiles.tokens, tiles.tokens, N)
    mask = _both(tokens, _inside(j * tiles.vocab, tiles.vocab, V), d_logits_nv.shape)
    plgpu.store(out_ref.at[...], d_logits_nv.astype(out_ref.dtype), mask=mask)


def _of_tokens(refs, i, tiles: Tiles, N):
    """Load what is known of a block of tokens, a column [n, 1] each."""
    mask = _inside(i * tiles.tokens, tiles.tokens, N)
    return [_load(ref.at[...], mask)[:, None] for ref in refs]


def _logits(hidden_ref, weights_ref, ints, i, j, options: Options, tiles: Tiles, N, V, D):
    """Return (logits [n, v] of tokens' block i and vocabulary's block j, where they are labels)."""
    tokens = _inside(i * tiles.tokens, tiles.tokens, N)
    vocab = _inside(j * tiles.vocab, tiles.vocab, V)
    columns = pl.ds(j * tiles.vocab, tiles.vocab)
    def channels_block(k, logits_nv):
        channels = pl.ds(k * tiles.channels, tiles.channels)
        inside = _inside(k * tiles.channels, tiles.channels, D)
        hidden_nd = _load(
            hidden_ref.at[:, channels], _both(tokens, inside, (tiles.tokens, tiles.channels))
        )
        if options.vocab_axis == 0:
            mask = _both(vocab, inside, (tiles.vocab, tiles.channels))
            weights_dv = _load(weights_ref.at[columns, channels], mask).T
        else:
            mask = _both(inside, vocab, (tiles.channels, tiles.vocab))
            weights_dv = _load(weights_ref.at[channels, columns], mask)
        return logits_nv + jnp.dot(hidden_nd, weights_dv, preferred_element_type=jnp.float32)

    zeros_nv = jnp.zeros((tiles.tokens, tiles.vocab), jnp.float32)
    logits_nv = jax.lax.fori_loop(0, pl.cdiv(D, tiles.channels), channels_block, zeros_nv)
    labels_n1, limits_n1, firsts_n1 = ints
    columns_1v = (j * tiles.vocab + jnp.arange(tiles.vocab, dtype=jnp.int32))[None, :]
    exists_nv = (columns_1v < limits_n1) & (columns_1v >= firsts_n1)
    is_label_nv = exists_nv & (columns_1v == labels_n1)
    return jnp.where(exists_nv, logits_nv, MASKED), is_label_nv


def _cost(N, D, V, itemsize, written):
    moved = (N * D + V * D + written) * itemsize
    return pl.CostEstimate(flops=2 * N * V * D, transcendentals=N * V, bytes_accessed=moved)


def _hidden_spec(hidden_ND, tiles: Tiles):
    D = hidden_ND.shape[1]
    return pl.BlockSpec((tiles.tokens, _up(D, tiles.channels)), lambda i, j: (i, 0))


def _whole_spec(weights, options: Options, tiles: Tiles):
    up = [tiles.channels, tiles.channels]
    up[options.vocab_axis] = tiles.vocab
    shape = tuple(_up(size, multiple) for size, multiple in zip(weights.shape, up, strict=True))
    return pl.BlockSpec(shape, lambda i, j: (0, 0))


def _up(size, multiple):
    return -(-size // multiple) * multiple


def _inside(start, length, total):
    """Return which of some indices are below the total; None: all, whatever the start."""
    return start + jnp.arange(length, dtype=jnp.int32) < total if total % length else None


def _both(rows, columns, shape):
    mask = None if rows is None else rows[:, None]
    if columns is not None:
        mask = columns[None, :] if mask is None else mask & columns[None, :]
    return None if mask is None else jnp.broadcast_to(mask, shape)


def _load(at, mask):
    return plgpu.load(at) if mask is None else plgpu.load(at, mask=mask, other=0)
