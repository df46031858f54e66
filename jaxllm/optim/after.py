"""An order for XLA's CPU compiler, so that arrays it updates in place need no copy first."""

import jax
import jax.numpy as jnp
from jaxllm_kernels.compat import types_say_shardings


def after(x: jax.Array, result: jax.Array, count: jax.Array) -> jax.Array:
    """Return x, on a CPU with a dependence on `result`: what reads x runs when `result` has been computed.

    XLA's CPU compiler makes each output a loop of its own, ordered by nothing but what the loops read, and
    copies a donated array that one of them overwrites and another may still read. Elsewhere, for fewer than
    two axes, and on a mesh with Explicit axes, whose entries cannot be cut out, this is x itself.

    Args:
      x: floating.
      result: of x's shape, floating.
      count: int32 [], of steps: 0 or more.
    """
    if x.ndim < 2 or x.size == 0 or types_say_shardings():
        return x
    return jax.lax.platform_dependent(x, result, count, cpu=_waiting, default=_itself)


# Functions of the module, since without jit each new one would be compiled again.
def _itself(x, result, count):
    del result, count
    return x


def _waiting(x, result, count):
    # XLA fuses nothing across a conditional, so its operand is computed first. That count < 0 never holds
    # is more than XLA can know. An entry a row, so that a block of rows depends on the same rows alone.
    always_false = jax.lax.cond(count < 0, _row_is_positive, _no_row, result)
    return jnp.where(always_false, jnp.zeros_like(x), x)


def _row_is_positive(result):
    return result[..., :1] > 0  # of its first entry: to read more, XLA would set memory aside


def _no_row(result):
    return _row_is_positive(result) & False
