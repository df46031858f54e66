"""Blockwise Walsh-Hadamard transform of any axis, as products with small Hadamard matrices."""

import math

import jax
import jax.numpy as jnp

from jaxllm_kernels.hadamard_rotate.matrix import block_sizes, hadamard_matrix, times_signs_matrix

# One product with a matrix of this size costs less than a second pass over the array.
_LARGEST_FACTOR = 256


def hadamard_rotate(x, signs, *, axis, block_size, inverse):
    """Return the rotation of x along `axis`, in x's dtype; arguments as of the api."""
    length = x.shape[axis]
    if x.size == 0:
        return x
    shape = [1] * x.ndim
    shape[axis] = length
    signs = None if signs is None else signs.reshape(shape)
    # A product with 1 or -1 is exact in any type.
    x_in = x if signs is None or inverse else x * signs.astype(x.dtype)
    parts, start = [], 0
    sizes = block_sizes(length, block_size)
    while start < length:
        size = sizes[0]
        count = sizes.count(size)
        part = jax.lax.slice_in_dim(x_in, start, start + count * size, axis=axis)
        parts.append(_transform(part, axis, size))
        start, sizes = start + count * size, sizes[count:]
    rotated = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
    if signs is not None and inverse:
        rotated = rotated * signs.astype(rotated.dtype)
    return rotated.astype(x.dtype)


def _transform(x, axis, size):
    """Return the normalised transform of every block of `size` along the axis, in float32."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    factors = [size] if size <= _LARGEST_FACTOR else [size // 128, 128]
    y = x.reshape(*before, x.shape[axis] // size, *factors, *after)
    if y.dtype != jnp.bfloat16:
        y = y.astype(jnp.float32)
    for i, factor in enumerate(factors, start=len(before) + 1):
        y = _product(y, i, factor)
    return y.reshape(x.shape) * (1 / math.sqrt(size))


def _product(x, axis, factor):
    matrix = hadamard_matrix(factor)

    def on_cpu(x):
        x = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
        return jnp.moveaxis(jnp.dot(x, matrix, precision="highest"), -1, axis)

    def elsewhere(x):
        x = jnp.moveaxis(x, axis, -1)
        return jnp.moveaxis(times_signs_matrix(x, jnp.asarray(matrix, jnp.bfloat16)), -1, axis)

    return jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere)
