"""Cross-entropy of a linear head without its logits in memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm_kernels.linear_cross_entropy import reference, xla

IMPLEMENTATIONS = ("reference", "xla")
# Logits held at a time, per device. 256 MiB is about 1,300 tokens of GPT-2's vocabulary: enough
# rows for the matmul to be bound by arithmetic, not by reading the head, on TPU and GPU.
LOGITS_BYTES = 256 * 2**20


class LossSums(NamedTuple):
    """Float32 scalars. Only `total` has a gradient; the other two are its parts, to be logged."""

    total: jax.Array
    cross_entropy: jax.Array
    z_loss: jax.Array


def linear_cross_entropy(
    hidden_BTD: jax.Array,
    weights: jax.Array,
    labels_BT: jax.Array,
    *,
    token_weights_BT: jax.Array | None = None,
    vocab_axis: int = 1,
    z_loss: float = 0.0,
    logits_bytes: int = LOGITS_BYTES,
    implementation: str | None = None,
) -> LossSums:
    """Return the weighted sum over tokens of -log softmax(hidden @ weights)[label].

    The gradients of hidden and weights are computed in the forward pass, chunk by chunk, and scaled
    in the backward pass, so logits exist for one chunk of time steps only. Matmuls run in
    hidden's dtype and accumulate in float32. Not twice differentiable; the reference is.

    Args:
      hidden_BTD: [B, T, D].
      weights: [D, V], or [V, D] with vocab_axis=0 (a tied token table): neither is transposed.
      labels_BT: int [B, T]; any value where the token weight is 0.
      token_weights_BT: [B, T] weight of each token, 0 leaves it out; None: all 1. No gradient.
      vocab_axis: which axis of weights is the vocabulary.
      z_loss: coefficient of logsumexp**2, added to each token's loss (PaLM, arXiv 2204.02311).
      logits_bytes: upper bound of one chunk's float32 logits on one device.
      implementation: None or "xla" (chunked), or "reference" (full logits).

    Examples:
      >>> hidden, weights = jnp.zeros((1, 3, 4)), jnp.zeros((4, 8))
      >>> sums = linear_cross_entropy(hidden, weights, jnp.zeros((1, 3), int))
      >>> print(f"{sums.total / 3:.4f}")  # log 8
      2.0794
    """
    _check(hidden_BTD, weights, labels_BT, vocab_axis, implementation)
    if token_weights_BT is None:
        token_weights_BT = jnp.ones(labels_BT.shape, jnp.float32)
    token_weights_BT = jax.lax.stop_gradient(token_weights_BT.astype(jnp.float32))
    if implementation == "reference":
        nll, z = reference.linear_cross_entropy(
            hidden_BTD,
            weights,
            labels_BT,
            token_weights_BT=token_weights_BT,
            vocab_axis=vocab_axis,
            z_loss=z_loss,
        )
        return LossSums(nll + z, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(z))
    chunk = _chunk_length(hidden_BTD.shape, weights.shape[vocab_axis], logits_bytes)
    sums = xla.weighted_sum(
        hidden_BTD, weights, labels_BT, token_weights_BT, vocab_axis, float(z_loss), chunk
    )
    return LossSums(*sums)


def token_log_probs(
    hidden_BTD: jax.Array,
    weights: jax.Array,
    labels_BT: jax.Array,
    *,
    vocab_axis: int = 1,
    logits_bytes: int = LOGITS_BYTES,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return (log softmax(hidden @ weights)[label], logsumexp of the logits), float32 [B, T] each.

    Differentiable any number of times; each chunk's logits are recomputed for it. Labels must be
    in [0, V). Arguments as in `linear_cross_entropy`.
    """
    _check(hidden_BTD, weights, labels_BT, vocab_axis, implementation)
    if implementation == "reference":
        return reference.token_log_probs(hidden_BTD, weights, labels_BT, vocab_axis=vocab_axis)
    chunk = _chunk_length(hidden_BTD.shape, weights.shape[vocab_axis], logits_bytes)
    return xla.token_log_probs(hidden_BTD, weights, labels_BT, vocab_axis, chunk)


def _chunk_length(hidden_shape, vocab_size: int, logits_bytes: int) -> int:
    """Return how many time steps to take at once: all, or even parts that keep to the budget."""
    B, T, _ = hidden_shape
    # Inside a mesh the batch (and perhaps the vocabulary) is spread over all its devices.
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    per_step = max(B * vocab_size * 4, 1)
    parts = -(-T // max(logits_bytes * devices // per_step, 1))
    return -(-T // parts)


def _check(hidden_BTD, weights, labels_BT, vocab_axis, implementation):
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation '{implementation}' is not one of {IMPLEMENTATIONS}")
    if vocab_axis not in (0, 1) or weights.shape[1 - vocab_axis] != hidden_BTD.shape[2]:
        raise ValueError(
            f"weights {weights.shape} with vocab_axis={vocab_axis} do not fit hidden "
            f"{hidden_BTD.shape}"
        )
    if labels_BT.shape != hidden_BTD.shape[:2]:
        raise ValueError(f"labels {labels_BT.shape} do not fit hidden {hidden_BTD.shape}")
