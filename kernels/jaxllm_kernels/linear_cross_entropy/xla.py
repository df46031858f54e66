"""Cross-entropy of a linear head in pieces, never holding the full logits: plain XLA.

Time is cut into chunks and, where a chunk's logits should pass through a cache, the vocabulary into
blocks. The training form computes the gradients already in the forward pass, while a chunk's logits
are there: three matmuls a chunk, where recomputing the logits in the backward pass takes four.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import dot_general_float32, varying_like
from jaxllm_kernels.linear_cross_entropy.labels import weighted
from jaxllm_kernels.linear_cross_entropy.options import MASKED, Options, Sizes

_CPU_ROWS = 128  # of SmolLM2's logits are 25 MB, and 1.7 times as fast as 512


def loss_sums(hidden_BTD, weights, labels_BT, counted_BT, limits_BT, *, options, sizes):
    """Return (cross-entropy, z-loss), each summed over tokens; one vocabulary shard's share."""

    def add(sums, piece):
        hidden_BtD, labels_Bt, counted_Bt, limits_Bt = piece
        stats, _ = _stats(hidden_BtD, weights, labels_Bt, limits_Bt, options, sizes)
        more = _sums(stats, counted_Bt, options)[0]
        return jax.tree.map(jnp.add, sums, more), None

    zero = _zeros((), hidden_BTD)
    pieces = (hidden_BTD, labels_BT, counted_BT, limits_BT)
    return over_chunks(add, (zero, zero), pieces, _time_chunk(hidden_BTD, weights, options, sizes))[0]


def loss_and_gradients(hidden_BTD, weights, labels_BT, counted_BT, limits_BT, *, options, sizes):
    """Return (loss_sums, gradient of their sum for hidden, and for weights in float32)."""

    def add(carry, piece):
        sums, d_weights = carry
        hidden_BtD, labels_Bt, counted_Bt, limits_Bt = piece
        stats, blocks = _stats(
            hidden_BtD, weights, labels_Bt, limits_Bt, options, sizes, keep_logits=True
        )
        more, *slopes = _sums(stats, counted_Bt, options)
        d_hidden_BtD, d_weights = _gradients(
            hidden_BtD, weights, labels_Bt, slopes, blocks, d_weights, options, sizes
        )
        return (jax.tree.map(jnp.add, sums, more), d_weights), d_hidden_BtD

    zero = _zeros((), hidden_BTD)
    carry = ((zero, zero), _zeros(weights.shape, hidden_BTD))
    pieces = (hidden_BTD, labels_BT, counted_BT, limits_BT)
    chunk = _time_chunk(hidden_BTD, weights, options, sizes)
    (sums, d_weights), d_hidden_BTD = over_chunks(add, carry, pieces, chunk)
    return sums, d_hidden_BTD, d_weights


def token_stats(hidden_BTD, weights, labels_BT, limits_BT, *, options, sizes):
    """Return (logsumexp, label's logit), float32 [B, T] each, of one shard.

    Differentiable any number of times, forward and backward; a gradient recomputes each chunk.
    """
    if sizes.block is not None:  # a CPU
        # Online sums over blocks would be saved block by block for the gradient; few rows at a time stay
        # in the cache too.
        rows_bytes = _CPU_ROWS * weights.shape[options.vocab_axis] * 4
        sizes = Sizes(min(sizes.logits_bytes, rows_bytes), block=None)

    @jax.checkpoint
    def step(carry, piece):
        hidden_BtD, labels_Bt, limits_Bt = piece
        return carry, _stats(hidden_BtD, weights, labels_Bt, limits_Bt, options, sizes)[0]

    chunk = _time_chunk(hidden_BTD, weights, options, sizes)
    return over_chunks(step, None, (hidden_BTD, labels_BT, limits_BT), chunk)[1]


def time_chunk(hidden_shape, vocab_size: int, logits_bytes: int) -> int:
    """Return how many time steps to take at once, so that their logits keep to the budget.

    All of them, or a divisor of the length if there is one near the budget (a ragged rest is
    compiled and held apart), or else even parts.
    """
    B, T, _ = hidden_shape
    most = min(max(logits_bytes // max(B * vocab_size * 4, 1), 1), T)
    for chunk in range(most, most // 2, -1):
        if T % chunk == 0:
            return chunk
    parts = -(-T // most)
    return -(-T // parts)


def _time_chunk(hidden_BTD, weights, options: Options, sizes: Sizes) -> int:
    return time_chunk(hidden_BTD.shape, weights.shape[options.vocab_axis], sizes.logits_bytes)


def _over_blocks(step, carry, vocab_size: int, block: int, kept=(None, None)):
    """Carry through step(carry, first column, columns, kept) -> (carry, out), a smaller block last.

    Returns:
      (carry, (outs of the blocks of equal length, stacked; of the last one or None)); `kept` is such a pair.
    """
    full, rest = divmod(vocab_size, block)
    starts = jnp.arange(full, dtype=jnp.int32) * block
    carry, outs = jax.lax.scan(lambda carry, x: step(carry, x[0], block, x[1]), carry, (starts, kept[0]))
    if not rest:
        return carry, (outs, None)
    carry, out = step(carry, full * block, rest, kept[1])
    return carry, (outs, out)


def _slice(weights, start, length, options):
    if length == weights.shape[options.vocab_axis]:
        return weights
    return jax.lax.dynamic_slice_in_dim(weights, start, length, options.vocab_axis)


def _logits(hidden_BtD, weights, start, length, limits_Bt, options: Options):
    # Contract whichever axis of the weights is not the vocabulary: a tied head needs no transpose.
    block = _slice(weights, start, length, options).astype(hidden_BtD.dtype)
    logits_Btv = dot_general_float32(
        hidden_BtD, block, (((2,), (1 - options.vocab_axis,)), ((), ()))
    )
    if limits_Bt is not None:
        columns = _columns(logits_Btv.shape, start)
        logits_Btv = jnp.where(columns < limits_Bt[..., None], logits_Btv, MASKED)
    return logits_Btv


def _zeros(shape, like):
    return varying_like(jnp.zeros(shape, jnp.float32), like)


def _sums(stats, counted_Bt, options: Options):
    """Return ((cross-entropy, z-loss) of a chunk, logsumexp, its losses' slopes)."""
    lse_Bt, label_Bt = stats
    lse_Bt = options.combine(lse_Bt)
    sums = tuple(jnp.sum(weighted(counted_Bt, x_Bt)) for x_Bt in options.losses(lse_Bt, label_Bt))
    return sums, lse_Bt, options.slopes(lse_Bt, counted_Bt)


def _columns(shape, start):
    return start + jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def _stats(hidden_BtD, weights, labels_Bt, limits_Bt, options, sizes, keep_logits=False):
    """Return ((logsumexp, label's logit), logits or those of `_over_blocks`, or None) of a chunk."""
    V = weights.shape[options.vocab_axis]
    labels_Bt, limits_Bt = options.local(labels_Bt, limits_Bt, weights)
    if not _in_blocks(sizes, V):
        logits_BtV = _logits(hidden_BtD, weights, 0, V, limits_Bt, options)
        # A comparison, not a gather: it fuses, and a sharded vocabulary stays sharded.
        hit = _columns(logits_BtV.shape, 0) == labels_Bt[..., None]
        label_Bt = jnp.sum(jnp.where(hit, logits_BtV, 0.0), axis=-1)
        lse_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
        return (lse_Bt, label_Bt), logits_BtV if keep_logits else None

    def step(carry, start, length, _):
        max_Bt, sum_Bt, label_Bt = carry
        logits_Btv = _logits(hidden_BtD, weights, start, length, limits_Bt, options)
        higher_Bt = jnp.maximum(max_Bt, jnp.max(logits_Btv, axis=-1))
        sum_Bt = sum_Bt * jnp.exp(max_Bt - higher_Bt) + jnp.sum(
            jnp.exp(logits_Btv - higher_Bt[..., None]), axis=-1
        )
        # Of one device's cache a gather is cheaper than a pass.
        at_Bt = labels_Bt - start
        found_Bt = jnp.take_along_axis(logits_Btv, jnp.clip(at_Bt, 0, length - 1)[..., None], axis=-1)[..., 0]
        here = (at_Bt >= 0) & (at_Bt < length)
        carry = (higher_Bt, sum_Bt, label_Bt + jnp.where(here, found_Bt, 0.0))
        return carry, logits_Btv if keep_logits else None

    zero_Bt = _zeros(labels_Bt.shape, hidden_BtD)
    carry = (zero_Bt + MASKED, zero_Bt, zero_Bt)
    (max_Bt, sum_Bt, label_Bt), blocks = _over_blocks(step, carry, V, sizes.block)
    return (max_Bt + jnp.log(sum_Bt), label_Bt), blocks


def _in_blocks(sizes: Sizes, vocab_size: int) -> bool:
    return sizes.block is not None and sizes.block < vocab_size


def _gradients(hidden_BtD, weights, labels_Bt, slopes, blocks, d_weights, options, sizes):
    """Return (gradient for a chunk's hidden states, d_weights with the chunk's part added)."""
    vocab_axis = options.vocab_axis
    V = weights.shape[vocab_axis]
    labels_Bt, _ = options.local(labels_Bt, None, weights)
    lse_Bt1, slopes = jax.tree.map(lambda x_Bt: x_Bt[..., None], slopes)
    in_blocks = _in_blocks(sizes, V)

    def one(logits_Btv, start, length):
        hit = _columns(logits_Btv.shape, start) == labels_Bt[..., None]
        d_logits_Btv = options.d_logits(logits_Btv, hit, lse_Bt1, slopes)
        d_logits_Btv = d_logits_Btv.astype(hidden_BtD.dtype)
        block = _slice(weights, start, length, options).astype(hidden_BtD.dtype)
        d_hidden_BtD = dot_general_float32(d_logits_Btv, block, (((2,), (vocab_axis,)), ((), ())))
        over_tokens = (((0, 1), (0, 1)), ((), ()))
        if vocab_axis == 1:
            return d_hidden_BtD, dot_general_float32(hidden_BtD, d_logits_Btv, over_tokens)
        if in_blocks:  # a CPU turns the left operand of a product, and hidden is the smaller one
            return d_hidden_BtD, dot_general_float32(hidden_BtD, d_logits_Btv, over_tokens).T
        return d_hidden_BtD, dot_general_float32(d_logits_Btv, hidden_BtD, over_tokens)

    if not in_blocks:
        d_hidden_BtD, piece = one(blocks, 0, V)
        return d_hidden_BtD.astype(hidden_BtD.dtype), d_weights + piece

    def step(carry, start, length, logits_Btv):
        d_hidden_BtD, d_weights = carry
        more_BtD, piece = one(logits_Btv, start, length)
        piece += jax.lax.dynamic_slice_in_dim(d_weights, start, length, vocab_axis)
        d_weights = jax.lax.dynamic_update_slice_in_dim(d_weights, piece, start, vocab_axis)
        return (d_hidden_BtD + more_BtD, d_weights), None

    carry = (_zeros(hidden_BtD.shape, hidden_BtD), d_weights)
    (d_hidden_BtD, d_weights), _ = _over_blocks(step, carry, V, sizes.block, blocks)
    return d_hidden_BtD.astype(hidden_BtD.dtype), d_weights


def over_chunks(step, carry, arrays, chunk):
    """Scan `step` over slices of `chunk` along axis 1, the ragged rest last; join its outputs."""
    length = arrays[0].shape[1]
    full = length // chunk
    outputs = []

    def cut(start, size):
        slice_ = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size, axis=1
        )
        return jax.tree.map(slice_, arrays)

    if full == 1:
        carry, out = step(carry, cut(0, chunk))
        outputs.append(out)
    elif full:
        body = lambda carry, index: step(carry, cut(index * chunk, chunk))
        carry, out = jax.lax.scan(body, carry, jnp.arange(full, dtype=jnp.int32))
        outputs.append(jax.tree.map(_join, out))
    if length % chunk:
        carry, out = step(carry, cut(full * chunk, length % chunk))
        outputs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs)


def _join(x_NBt):
    """Turn stacked chunks [N, B, t, ...] into [B, N * t, ...]."""
    x_BNt = jnp.moveaxis(x_NBt, 0, 1)
    return x_BNt.reshape(x_BNt.shape[0], -1, *x_BNt.shape[3:])
