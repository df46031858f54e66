"""An order for XLA's CPU compiler, so that arrays it updates in place need no copy first."""

import jax
import jax.numpy as jnp


def after(x: jax.Array, result: jax.Array, count: jax.Array) -> jax.Array:
    """Return x, which what is compiled for a CPU reads only when `result` has been computed.

    There each result of a program is a loop of its own, and the loops are ordered by nothing but what they
    read. So an array that one of them overwrites and another reads is copied before both; here the one that
    reads it can be made the first. Elsewhere, and for x without rows and columns, this is x itself.

    Args:
      x: floating, at least as many axes as 2 for an order.
      result: shape of x, floating.
      count: int32 [], of steps; below 0 never, which the compiler cannot know.
    """
    if x.ndim < 2:
        return x
    return jax.lax.platform_dependent(x, result, count, cpu=_waiting, default=lambda x, *_: x)


def _waiting(x, result, count):
    # A program to choose is not merged with the loops around it: its operand is computed before. It returns
    # an entry a row, so that a block of rows waits for the same rows alone, and always False.
    def look(result):
        return jnp.max(result, axis=-1, keepdims=True) > 0

    never = jax.lax.cond(count < 0, look, lambda result: look(result) & False, result)
    return jnp.where(never, jnp.zeros_like(x), x)
