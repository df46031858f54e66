"""Multiplication by a weight matrix, whichever way the matrix lies in memory."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputMajor:
    """A weight with its output axes first, [out..., in...], as `models.for_decoding` makes them.

    A few rows times such a matrix is, on a CPU, a sweep over contiguous rows of the matrix.
    """

    weight: jax.Array


def linear(x: jax.Array, params: dict, name: str, in_axes: int = 1) -> jax.Array:
    """Return x @ params[name], plus params[name + "_bias"] if there is one, in x's dtype.

    Args:
      x: [B, T, in...].
      params: {name: [in..., out...] or OutputMajor, name_bias: [out...] optional}.
      in_axes: how many axes of the weight are summed over.
    """
    weight = params[name]
    summed = tuple(range(2, 2 + in_axes))
    if isinstance(weight, OutputMajor):
        w = weight.weight.astype(x.dtype)
        out_axes = tuple(range(w.ndim - in_axes))
        y = jax.lax.dot_general(w, x, ((tuple(range(len(out_axes), w.ndim)), summed), ((), ())))
        y = jnp.moveaxis(y, (-2, -1), (0, 1))
    else:
        rows, width = x.shape[:2], math.prod(weight.shape[:in_axes])
        # Two matrices: with more axes XLA's CPU backend transposes operands of the gradient.
        y = x.reshape(-1, width) @ weight.astype(x.dtype).reshape(width, -1)
        y = y.reshape(*rows, *weight.shape[in_axes:])
    if f"{name}_bias" in params:
        y = y + params[f"{name}_bias"].astype(x.dtype)
    return y


def output_major(weight: jax.Array, in_axes: int = 1) -> OutputMajor:
    """Return a weight [in..., out...] with its output axes first."""
    order = (*range(in_axes, weight.ndim), *range(in_axes))
    return OutputMajor(jnp.transpose(weight, order))
