"""Cross-entropy of a linear head in pieces, never holding the full logits: plain XLA.

Time is cut into chunks and, where a chunk's logits should pass through a cache, the vocabulary into
blocks. The training form computes the gradients already in the forward pass, while a chunk's logits
are there: three matmuls a chunk, where recomputing the logits in the backward pass takes four.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import dot_general_float32, varying_like
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


def _blocks(vocab_size: int, block: int | None):
    """Return (block length, first column and first new column of each block).

    The last block is moved back so that it ends with the vocabulary: it sees columns of the block
    before it again, and leaves them out.
    """
    if block is None or block >= vocab_size:
        return vocab_size, None
    new = jnp.arange(0, vocab_size, block, dtype=jnp.int32)
    return block, (jnp.minimum(new, vocab_size - block), new)


def _slice(weights, start, length, options):
    if length == weights.shape[options.vocab_axis]:
        return weights
    return jax.lax.dynamic_slice_in_dim(weights, start, length, options.vocab_axis)


def _logits(hidden_BtD, weights, start, new, length, limits_Bt, options: Options):
    # Contract whichever axis of the weights is not the vocabulary: a tied head needs no transpose.
    block = _slice(weights, start, length, options).astype(hidden_BtD.dtype)
    logits_Btv = dot_general_float32(
        hidden_BtD, block, (((2,), (1 - options.vocab_axis,)), ((), ()))
    )
    columns = _columns(logits_Btv.shape, start)
    if new is not start:
        logits_Btv = jnp.where(columns >= new, logits_Btv, MASKED)
    if limits_Bt is not None:
        logits_Btv = jnp.where(columns < limits_Bt[..., None], logits_Btv, MASKED)
    return logits_Btv


def _zeros(shape, like):
    return varying_like(jnp.zeros(shape, jnp.float32), like)


def _sums(stats, counted_Bt, options: Options):
    """Return ((cross-entropy, z-loss) of a chunk, logsumexp, its losses' slopes)."""
    lse_Bt, label_Bt = stats
    lse_Bt = options.combine(lse_Bt)
    sums = tuple(jnp.sum(counted_Bt * x_Bt) for x_Bt in options.losses(lse_Bt, label_Bt))
    return sums, lse_Bt, options.slopes(lse_Bt, counted_Bt)


def _columns(shape, start):
    return start + jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def _stats(hidden_BtD, weights, labels_Bt, limits_Bt, options, sizes, keep_logits=False):
    """Return ((logsumexp, label's logit), logits by block or None) of a chunk."""
    length, starts = _blocks(weights.shape[options.vocab_axis], sizes.block)
    labels_Bt, limits_Bt = options.local(labels_Bt, limits_Bt, weights)

    def one(start, new):
        logits_Btv = _logits(hidden_BtD, weights, start, new, length, limits_Bt, options)
        max_Bt = jnp.max(logits_Btv, axis=-1)
        # A comparison, not a gather: it fuses, and a sharded vocabulary stays sharded.
        hit = (logits_Btv > MASKED) & (_columns(logits_Btv.shape, start) == labels_Bt[..., None])
        label_Bt = jnp.sum(jnp.where(hit, logits_Btv, 0.0), axis=-1)
        return logits_Btv, max_Bt, label_Bt

    if starts is None:
        logits_BtV, _, label_Bt = one(0, 0)
        lse_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
        return (lse_Bt, label_Bt), logits_BtV if keep_logits else None

    def step(carry, block):
        max_Bt, sum_Bt, label_Bt = carry
        logits_Btv, block_max_Bt, block_label_Bt = one(*block)
        higher_Bt = jnp.maximum(max_Bt, block_max_Bt)
        sum_Bt = sum_Bt * jnp.exp(max_Bt - higher_Bt) + jnp.sum(
            jnp.exp(logits_Btv - higher_Bt[..., None]), axis=-1
        )
        carry = (higher_Bt, sum_Bt, label_Bt + block_label_Bt)
        return carry, logits_Btv if keep_logits else None

    zero_Bt = _zeros(labels_Bt.shape, hidden_BtD)
    carry = (zero_Bt + MASKED, zero_Bt, zero_Bt)
    (max_Bt, sum_Bt, label_Bt), blocks = jax.lax.scan(step, carry, starts)
    return (max_Bt + jnp.log(sum_Bt), label_Bt), blocks


def _gradients(hidden_BtD, weights, labels_Bt, slopes, blocks, d_weights, options, sizes):
    """Return (gradient for a chunk's hidden states, d_weights with the chunk's part added)."""
    vocab_axis = options.vocab_axis
    length, starts = _blocks(weights.shape[vocab_axis], sizes.block)
    labels_Bt, _ = options.local(labels_Bt, None, weights)
    lse_Bt1, slopes = jax.tree.map(lambda x_Bt: x_Bt[..., None], slopes)

    def one(logits_Btv, start):
        hit = _columns(logits_Btv.shape, start) == labels_Bt[..., None]
        hit &= logits_Btv > MASKED
        d_logits_Btv = options.d_logits(logits_Btv, hit, lse_Bt1, slopes)
        d_logits_Btv = d_logits_Btv.astype(hidden_BtD.dtype)
        block = _slice(weights, start, length, options).astype(hidden_BtD.dtype)
        d_hidden_BtD = dot_general_float32(d_logits_Btv, block, (((2,), (vocab_axis,)), ((), ())))
        pair = (d_logits_Btv, hidden_BtD) if vocab_axis == 0 else (hidden_BtD, d_logits_Btv)
        return d_hidden_BtD, dot_general_float32(*pair, (((0, 1), (0, 1)), ((), ())))

    if starts is None:
        d_hidden_BtD, piece = one(blocks, 0)
        return d_hidden_BtD.astype(hidden_BtD.dtype), d_weights + piece

    def step(carry, block):
        d_hidden_BtD, d_weights = carry
        logits_Btv, start = block
        more_BtD, piece = one(logits_Btv, start)
        piece += jax.lax.dynamic_slice_in_dim(d_weights, start, length, vocab_axis)
        d_weights = jax.lax.dynamic_update_slice_in_dim(d_weights, piece, start, vocab_axis)
        return (d_hidden_BtD + more_BtD, d_weights), None

    zeros_BtD = _zeros(hidden_BtD.shape, hidden_BtD)
    (d_hidden_BtD, d_weights), _ = jax.lax.scan(step, (zeros_BtD, d_weights), (blocks, starts[0]))
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
