"""Which labels count: a negative one does not, and one that its softmax has not is loud."""

import jax
import jax.numpy as jnp
import numpy as np


def settle(labels, token_weights, size) -> tuple[jax.Array, jax.Array]:
    """Return (labels in [0, size), weights: 0 for a negative label, NaN for one too large that counts).

    Args:
      size: how many labels there are, an int or one for each token.
    """
    counts, exists = (labels >= 0) & (token_weights != 0), labels < size
    weights = jnp.where(counts, jnp.where(exists, token_weights, jnp.nan), 0.0)
    return jnp.where(counts & exists, labels, 0), weights


def settle_hidden(hidden, token_weights) -> jax.Array:
    """Put 0 for NaN and Inf in hidden states of tokens that do not count: 0 times those is NaN."""
    return jnp.where((token_weights != 0)[..., None] | jnp.isfinite(hidden), hidden, 0)


def weighted(token_weights, values) -> jax.Array:
    """Return their product, 0 where the weight is 0, whatever the value."""
    return jnp.where(token_weights != 0, token_weights * values, 0.0)


def refuse_unknown(name: str, labels, token_weights, size, limits=None, *, may_be_negative=True) -> None:
    """Raise a ValueError if a label that counts is not below `size` and its limit, where all are NumPy's."""
    if not all(x is None or isinstance(x, np.ndarray) for x in (labels, token_weights, limits)):
        return
    sizes = np.broadcast_to(size if limits is None else np.minimum(size, limits), labels.shape)
    wrong = (labels >= sizes) & (labels >= 0) if may_be_negative else (labels >= sizes) | (labels < 0)
    if token_weights is not None:
        wrong &= token_weights != 0
    if wrong.any():
        columns, out = sizes[wrong][0], " with a weight of 0" if may_be_negative else ""
        raise ValueError(
            f"{name} hold {labels[wrong][0]}, and that token's softmax is over {columns} columns, from 0; "
            f"correct it, or leave the token out{out}"
        )
