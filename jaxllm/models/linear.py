"""Multiplication by a weight matrix, whichever way the matrix lies in memory."""

import functools
import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.models.architecture import Declaration
from jaxllm.parallel import mesh_axes, on_shards, spread


def linear(x: jax.Array, params: dict, declared: dict[str, Declaration], name: str) -> jax.Array:
    """Return x @ params[name], plus params[name + "_bias"] if there is one, in x's dtype.

    Args:
      x: [B, T, in...].
      params: {name: [in..., out...], or a weight of another form; name_bias: [out...] optional}. Such a form
        (`LowRank`) has a `multiply(x_NI, product, axes, in_axes)` -> ([N, out], out...).
      declared: {name: the weight's declaration}; its inputs come first.
    """
    return linears(x, params, declared, name)[0]


def linears(x: jax.Array, params: dict, declared: dict[str, Declaration], *names: str) -> list[jax.Array]:
    """Return what `linear` does for several weights, keeping one x for their backward passes."""
    rows = x.shape[:2]
    # Matrices: with more axes XLA's CPU backend transposes operands of the weights' gradients.
    x_NI = x.reshape(rows[0] * rows[1], math.prod(x.shape[2:]))
    product = functools.partial(_product, rows)
    outputs = []
    for name in names:
        weight, axes, in_axes = params[name], declared[name].axes, len(declared[name].inputs)
        if hasattr(weight, "multiply"):
            y_NO, shape = weight.multiply(x_NI, product, axes, in_axes)
        else:
            y_NO, shape = product(x_NI, weight, axes, in_axes), weight.shape[in_axes:]
        y = y_NO.reshape(*rows, *shape)
        if f"{name}_bias" in params:
            y = y + params[f"{name}_bias"].astype(x.dtype)[None, None]
        outputs.append(y)
    return outputs


def _product(rows: tuple[int, int], x_NI: jax.Array, weight: jax.Array, axes: tuple, in_axes: int):
    """Return x, of B x T rows, times a weight [in..., out...] as a matrix, in x's dtype."""
    matrix_IO = weight.reshape(x_NI.shape[1], -1)
    sharded = _matrix_spec(axes, weight.shape, in_axes)
    whole = _matrix_spec(_whole(axes), weight.shape, in_axes)
    if sharded == whole:
        return x_NI @ matrix_IO.astype(x_NI.dtype)
    rows_spec = spread(("batch", None), rows)[0]
    return _gathering_product((rows_spec, sharded, whole), x_NI, matrix_IO)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathering_product(specs: tuple, x_NI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """Return x @ w for a w sharded along "embed".

    All-gather w before each use, in x's dtype; the backward pass gathers again, so that no residual
    holds the whole of w. Left to itself the compiler may multiply shard by shard in a ring, with
    matrices too narrow for the matrix unit: twice the time of a GPT-2 step on v5e-8 by its own estimate.

    Args:
      specs: of x's rows, of w sharded, and of w gathered.
    """
    return x_NI @ _gather(specs, x_NI, w_IO)


def _gathering_forward(specs, x_NI, w_IO):
    return _gathering_product(specs, x_NI, w_IO), (x_NI, w_IO)


def _gathering_backward(specs, kept, dy_NO):
    x_NI, w_IO = kept
    dw_IO = _scattered_product(specs, x_NI, dy_NO).astype(w_IO.dtype)
    return dy_NO @ _gather(specs, x_NI, w_IO).T, dw_IO


_gathering_product.defvjp(_gathering_forward, _gathering_backward)


def _gather(specs, x_NI, w_IO):
    # Constrain the cast shard first, so that the all-gather sends x's dtype and not w's wider one.
    w_IO = w_IO.astype(x_NI.dtype)
    for spec in specs[1:]:
        w_IO = _pin(w_IO, spec)
    return w_IO


def _scattered_product(specs, x_NI, dy_NO):
    """Reduce-scatter x.T @ dy.

    Written with shard_map: left to itself the compiler for TPUs of three dimensions all-reduces the whole
    matrix, which sends twice the bytes, and slices it then.
    """
    rows, sharded, whole = specs
    cut = 0 if sharded[0] != whole[0] else 1
    over, summed = mesh_axes(sharded[cut]), mesh_axes(rows)
    if not set(over) <= set(summed):  # rows that could not be split: each device has the whole sum
        return _pin(x_NI.T @ dy_NO, sharded)
    ways = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in over)

    def on_part(x_NI, dy_NO):
        one, other = (x_NI, dy_NO) if cut == 0 else (dy_NO, x_NI)
        dw = one.T @ other
        # Shards along an axis of their own, the first: libtpu scatters those whatever their sizes.
        dw = jax.lax.psum_scatter(dw.reshape(ways, -1, dw.shape[1]), over, scatter_dimension=0)
        dw = jax.lax.psum(dw, tuple(axis for axis in summed if axis not in over))
        return dw if cut == 0 else dw.T

    in_specs = PartitionSpec(rows, whole[0]), PartitionSpec(rows, whole[1])
    return on_shards(on_part, in_specs, sharded)(x_NI, dy_NO)


def _pin(x, spec: PartitionSpec) -> jax.Array:
    # Of the mesh in force by name: before jax 0.8 a PartitionSpec alone asks for a mesh of real devices.
    return jax.lax.with_sharding_constraint(x, NamedSharding(jax.sharding.get_abstract_mesh(), spec))


def _matrix_spec(axes, shape, in_axes: int) -> PartitionSpec | None:
    """Return the spec of a weight as a matrix [in, out] on the mesh in force; None without a mesh."""
    spec = spread(axes, shape)
    if spec is None:
        return None
    # What is split is the first axis of those that are merged: heads, not their width.
    return PartitionSpec(spec[0], spec[in_axes])


def _whole(axes):
    """Return the names of the axes of a weight that is not split along the model's width."""
    return tuple(None if axis == "embed" else axis for axis in axes)
