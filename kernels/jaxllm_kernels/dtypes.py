"""The type in which a narrower one is summed."""

import jax.numpy as jnp


def widened(dtype) -> jnp.dtype:
    """Return float32, or float64 for float64; `jnp.promote_types` may be told to promote nothing."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
