"""Cross-entropy of a linear head, in chunks along time, never holding the full logits.

The training form computes the gradients already in the forward pass, while a chunk's logits are
there: three matmuls a chunk, where recomputing the logits in the backward pass takes four.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import dot_general_float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def weighted_sum(hidden_BTD, weights, labels_BT, token_weights_BT, vocab_axis, z_loss, chunk):
    """Return (total, its cross-entropy part, its z-loss part); only total has a gradient."""
    losses = functools.partial(_chunk_loss, weights, vocab_axis=vocab_axis, z_loss=z_loss)
    zero = jnp.zeros((), jnp.float32)

    def add(sums, piece):
        return jax.tree.map(jnp.add, sums, losses(*piece)[0]), None

    sums, _ = _over_chunks(add, (zero, zero), (hidden_BTD, labels_BT, token_weights_BT), chunk)
    return sums[0] + sums[1], *sums


def _forward(hidden_BTD, weights, labels_BT, token_weights_BT, vocab_axis, z_loss, chunk):
    gradients = functools.partial(_chunk_gradients, weights, vocab_axis=vocab_axis, z_loss=z_loss)

    def add(carry, piece):
        sums, d_weights = carry
        piece_sums, d_hidden_BtD, piece_d_weights = gradients(*piece)
        return (jax.tree.map(jnp.add, sums, piece_sums), d_weights + piece_d_weights), d_hidden_BtD

    pieces = (hidden_BTD, labels_BT, token_weights_BT)
    if chunk >= hidden_BTD.shape[1]:
        sums, d_hidden_BTD, d_weights = gradients(*pieces)
    else:
        zero = jnp.zeros((), jnp.float32)
        carry = ((zero, zero), jnp.zeros(weights.shape, jnp.float32))
        (sums, d_weights), d_hidden_BTD = _over_chunks(add, carry, pieces, chunk)
    saved = (d_hidden_BTD, d_weights.astype(weights.dtype))
    return (sums[0] + sums[1], *sums), saved


def _backward(vocab_axis, z_loss, chunk, saved, cotangents):
    d_hidden_BTD, d_weights = saved
    scale = cotangents[0]

    def scaled(gradient):
        return (gradient.astype(jnp.float32) * scale).astype(gradient.dtype)

    return scaled(d_hidden_BTD), scaled(d_weights), None, None


weighted_sum.defvjp(_forward, _backward)


def token_log_probs(hidden_BTD, weights, labels_BT, vocab_axis, chunk):
    """Return (log p(label), logsumexp), each float32 [B, T]; a gradient recomputes each chunk."""

    @jax.checkpoint
    def step(carry, piece):
        hidden_BtD, labels_Bt = piece
        logits_BtV = _logits(hidden_BtD, weights, vocab_axis)
        lse_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
        return carry, (_label_logit(logits_BtV, labels_Bt) - lse_Bt, lse_Bt)

    return _over_chunks(step, None, (hidden_BTD, labels_BT), chunk)[1]


def _logits(hidden_BtD, weights, vocab_axis):
    # Contract whichever axis of the weights is not the vocabulary: a tied head needs no transpose.
    return dot_general_float32(
        hidden_BtD, weights.astype(hidden_BtD.dtype), (((2,), (1 - vocab_axis,)), ((), ()))
    )


def _is_label(logits_BtV, labels_Bt):
    # A comparison, not a gather or a scatter: it fuses, and a sharded vocabulary stays sharded.
    return jax.lax.broadcasted_iota(jnp.int32, logits_BtV.shape, 2) == labels_Bt[..., None]


def _label_logit(logits_BtV, labels_Bt):
    return jnp.sum(jnp.where(_is_label(logits_BtV, labels_Bt), logits_BtV, 0.0), axis=-1)


def _chunk_loss(weights, hidden_BtD, labels_Bt, w_Bt, *, vocab_axis, z_loss):
    logits_BtV = _logits(hidden_BtD, weights, vocab_axis)
    lse_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
    nll_Bt = lse_Bt - _label_logit(logits_BtV, labels_Bt)
    sums = jnp.sum(w_Bt * nll_Bt), z_loss * jnp.sum(w_Bt * jnp.square(lse_Bt))
    return sums, logits_BtV, lse_Bt


def _chunk_gradients(weights, hidden_BtD, labels_Bt, w_Bt, *, vocab_axis, z_loss):
    sums, logits_BtV, lse_Bt = _chunk_loss(
        weights, hidden_BtD, labels_Bt, w_Bt, vocab_axis=vocab_axis, z_loss=z_loss
    )
    # d nll = softmax - onehot; d lse**2 = 2 lse softmax.
    probs_BtV = jnp.exp(logits_BtV - lse_Bt[..., None])
    softmax_weight_Bt = w_Bt * (1.0 + 2.0 * z_loss * lse_Bt) if z_loss else w_Bt
    d_logits_BtV = softmax_weight_Bt[..., None] * probs_BtV
    d_logits_BtV -= jnp.where(_is_label(logits_BtV, labels_Bt), w_Bt[..., None], 0.0)
    d_logits_BtV = d_logits_BtV.astype(hidden_BtD.dtype)
    d_hidden_BtD = jax.lax.dot_general(
        d_logits_BtV, weights.astype(hidden_BtD.dtype), (((2,), (vocab_axis,)), ((), ()))
    )
    pair = (d_logits_BtV, hidden_BtD) if vocab_axis == 0 else (hidden_BtD, d_logits_BtV)
    d_weights = dot_general_float32(*pair, (((0, 1), (0, 1)), ((), ())))
    return sums, d_hidden_BtD, d_weights


def _over_chunks(step, carry, arrays, chunk):
    """Scan `step` over slices of `chunk` along axis 1, the ragged rest last; join its outputs."""
    length = arrays[0].shape[1]
    full = length // chunk
    outputs = []
    if full == 1:
        carry, out = step(carry, tuple(x[:, :chunk] for x in arrays))
        outputs.append(out)
    elif full:

        def body(carry, index):
            start = index * chunk
            return step(
                carry, tuple(jax.lax.dynamic_slice_in_dim(x, start, chunk, 1) for x in arrays)
            )

        carry, out = jax.lax.scan(body, carry, jnp.arange(full))
        outputs.append(jax.tree.map(_join, out))
    if length % chunk:
        carry, out = step(carry, tuple(x[:, full * chunk :] for x in arrays))
        outputs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs)


def _join(x_NBt):
    """Turn stacked chunks [N, B, t, ...] into [B, N * t, ...]."""
    x_BNt = jnp.moveaxis(x_NBt, 0, 1)
    return x_BNt.reshape(x_BNt.shape[0], -1, *x_BNt.shape[3:])
