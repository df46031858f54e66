"""What differs between the versions of jax that this library supports (0.7.2 and later)."""

import jax
import jax.numpy as jnp

# Before jax 0.9 the CPU backend lacks bfloat16 x bfloat16 -> float32 with the right operand
# contracted over its last axis ("Unsupported element type for DotThunk::Execute").
_WIDEN_ON_CPU = jax.__version_info__ < (0, 9)


def dot_general_float32(left: jax.Array, right: jax.Array, dimension_numbers) -> jax.Array:
    """Return `jax.lax.dot_general`, accumulated in float32 and left there."""
    if _WIDEN_ON_CPU and jax.default_backend() == "cpu":
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jax.lax.dot_general(left, right, dimension_numbers, preferred_element_type=jnp.float32)
