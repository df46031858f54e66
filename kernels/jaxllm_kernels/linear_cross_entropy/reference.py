"""Cross-entropy of a linear head with its full logits: the oracle."""

import jax
import jax.numpy as jnp

from jaxllm_kernels.dtypes import widened
from jaxllm_kernels.linear_cross_entropy.labels import weighted
from jaxllm_kernels.linear_cross_entropy.options import MASKED, Options


def token_log_probs(hidden, weights, labels, limits, options: Options):
    """Return (log p(label), logsumexp of the logits), float32 (or wider), shaped like labels."""
    if options.vocab_axis_name is not None:
        axis = options.vocab_axis
        weights = jax.lax.all_gather(weights, options.vocab_axis_name, axis=axis, tiled=True)
    weights_DV = weights if options.vocab_axis == 1 else weights.T
    wide = widened(hidden.dtype)
    logits = jnp.einsum(
        "...d,dv->...v", hidden, weights_DV.astype(hidden.dtype), preferred_element_type=wide
    )
    columns = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    exists = jnp.ones_like(columns, bool) if limits is None else columns < limits[..., None]
    logits = jnp.where(exists, logits, MASKED)
    lse = jax.nn.logsumexp(logits, axis=-1)
    log_probs = logits - lse[..., None]
    log_prob = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    return log_prob, lse


def linear_cross_entropy(hidden, weights, labels, token_weights, limits, options: Options):
    """Return (sum of weight * -log p, z_loss * sum of weight * logsumexp**2)."""
    log_probs, lse = token_log_probs(hidden, weights, labels, limits, options)
    nll, z = (jnp.sum(weighted(token_weights, x)) for x in (-log_probs, lse**2))
    return nll, options.z_loss * z
