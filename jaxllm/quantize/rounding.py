"""Rounding to an integer grid and back, in float32."""

import jax
import jax.numpy as jnp


def absmax(x: jax.Array, bits: int, largest: jax.Array) -> jax.Array:
    """Round to 2^bits - 1 evenly spaced numbers from -largest to largest; keep x's dtype.

    What lies beyond is clipped. Halves go to the even neighbour.

    Args:
      x: any shape.
      bits: of an integer on the grid.
      largest: magnitude at the grid's ends, broadcastable to x; where it is 0 the result is 0.

    Examples:
      >>> absmax(jnp.array([-9.0, 0.4, 1.2, 3.0]), 3, jnp.array(3.0))
      Array([-3.,  0.,  1.,  3.], dtype=float32)
    """
    top = 2 ** (bits - 1) - 1
    step = jax.lax.broadcast_to_rank(largest, x.ndim).astype(jnp.float32) / top
    steps = jnp.round(x.astype(jnp.float32) / jnp.where(step == 0, 1, step))
    return (jnp.clip(steps, -top, top) * step).astype(x.dtype)


def zeropoint(x: jax.Array, bits: int, least: jax.Array, most: jax.Array) -> jax.Array:
    """Round to 2^bits evenly spaced numbers, 0 among their multiples, that span least to most.

    Args:
      x: any shape; its dtype is kept.
      bits: of an integer on the grid.
      least: broadcastable to x.
      most: the same; where it equals `least`, x is kept as it is.

    Examples:
      >>> zeropoint(jnp.array([-1.0, 0.2, 1.1, 2.0]), 2, jnp.array(-1.0), jnp.array(2.0))
      Array([-1.,  0.,  1.,  2.], dtype=float32)
    """
    top = 2**bits - 1
    least, most = (jax.lax.broadcast_to_rank(bound, x.ndim) for bound in (least, most))
    width = most.astype(jnp.float32) - least.astype(jnp.float32)
    step = jnp.where(width == 0, 1, width / top)
    zero = jnp.round(-least.astype(jnp.float32) / step)
    steps = jnp.clip(jnp.round(x.astype(jnp.float32) / step) + zero, 0, top)
    return jnp.where(width == 0, x, ((steps - zero) * step).astype(x.dtype))
