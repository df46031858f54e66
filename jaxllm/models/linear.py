"""Multiplication by a weight matrix, whichever way the matrix lies in memory."""

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
    return linears(x, params, name, in_axes=in_axes)[0]


def linears(x: jax.Array, params: dict, *names: str, in_axes: int = 1) -> list[jax.Array]:
    """Return what `linear` does for several weights, keeping one x for their backward passes."""
    rows = x.shape[:2]
    # Matrices: with more axes XLA's CPU backend transposes operands of the weights' gradients.
    x_NI = x.reshape(rows[0] * rows[1], -1)
    outputs = []
    for name in names:
        weight = params[name]
        if isinstance(weight, OutputMajor):
            shape = weight.weight.shape[: weight.weight.ndim - in_axes]
            w_OI = weight.weight.astype(x.dtype).reshape(-1, x_NI.shape[1])
            y_NO = jax.lax.dot_general(w_OI, x_NI, (((1,), (1,)), ((), ()))).T
        else:
            shape = weight.shape[in_axes:]
            y_NO = x_NI @ weight.astype(x.dtype).reshape(x_NI.shape[1], -1)
        y = y_NO.reshape(*rows, *shape)
        if f"{name}_bias" in params:
            y = y + params[f"{name}_bias"].astype(x.dtype)
        outputs.append(y)
    return outputs


def output_major(weight: jax.Array, in_axes: int = 1) -> OutputMajor:
    """Return a weight [in..., out...] with its output axes first."""
    order = (*range(in_axes, weight.ndim), *range(in_axes))
    return OutputMajor(jnp.transpose(weight, order))
