"""Types of floats, promoted in so many words: a user may tell jax to promote none."""

import jax.numpy as jnp


def widened(dtype) -> jnp.dtype:
    """Return float32, or float64 for float64; `jnp.promote_types` may be told to promote nothing."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def in_widest(*arrays):
    """Return the arrays in the widest of their types, as jax promotes them unless it is told not to."""
    wide = max((x.dtype for x in arrays), key=lambda dtype: dtype.itemsize)
    return [x.astype(wide) for x in arrays]
