"""Random orthogonal rotation by signs and a blockwise Walsh-Hadamard transform."""

import functools

import jax
import jax.numpy as jnp

from jaxllm_kernels.dispatch import dispatch
from jaxllm_kernels.hadamard_rotate import xla

IMPLEMENTATIONS = ("xla", "pallas_tpu", "pallas_gpu")


def hadamard_rotate(
    x: jax.Array,
    *,
    block_size: int,
    signs: jax.Array | None = None,
    inverse: bool = False,
    axis: int | None = -1,
    implementation: str | None = None,
) -> jax.Array:
    """Return H (signs * x) along an axis, H normalised Walsh-Hadamard over blocks; or its inverse.

        forward: y = H (s * x)        inverse: x = s * (H y)        H H = I, H = H^T

    The inverse is the transpose, hence also the gradient. A length that `block_size` does not
    divide ends in smaller blocks (see `block_sizes`). Arithmetic is float32.

    Args:
      x: any shape; bfloat16 or float32 (any other float is rotated in float32).
      block_size: a power of two: how many elements each rotated one is a sum of.
      signs: [length of the axis] of 1 and -1 (`random_signs`), or None; no gradient.
      inverse: undo the rotation by the same signs.
      axis: which axis, or None for all of them flattened.
      implementation: None for the platform's best, or a name in IMPLEMENTATIONS.

    Raises:
      ValueError: a block size that is no power of two, signs that do not fit, an axis that is not
        there, an implementation that cannot run this.

    Examples:
      >>> x = jnp.array([1.0, 0.0, 0.0, 0.0])
      >>> y = hadamard_rotate(x, block_size=4, signs=jnp.array([-1.0, 1, 1, 1]))
      >>> print(y, hadamard_rotate(y, block_size=4, signs=jnp.array([-1.0, 1, 1, 1]), inverse=True))
      [-0.5 -0.5 -0.5 -0.5] [1. 0. 0. 0.]
    """
    if axis is None:
        flat = hadamard_rotate(
            x.reshape(-1), block_size=block_size, signs=signs, inverse=inverse,
            implementation=implementation,
        )  # fmt: skip
        return flat.reshape(x.shape)
    _check(x, block_size, signs, axis)
    signs = None if signs is None else jax.lax.stop_gradient(signs)
    return _rotate(x, signs, axis % x.ndim, block_size, inverse, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _rotate(x, signs, axis, block_size, inverse, implementation):
    from jaxllm_kernels.hadamard_rotate import pallas_gpu, pallas_tpu  # here: Pallas is slow to import

    options = {"block_size": block_size, "inverse": inverse}
    candidates = {
        "xla": functools.partial(xla.hadamard_rotate, axis=axis, **options),
        "pallas_tpu": functools.partial(pallas_tpu.hadamard_rotate, **options),
        "pallas_gpu": functools.partial(pallas_gpu.hadamard_rotate, **options),
    }
    cannot = {
        "pallas_tpu": pallas_tpu.cannot(x.shape, axis, block_size, x.dtype),
        "pallas_gpu": pallas_gpu.cannot(x.shape, axis, block_size, x.dtype),
    }
    if implementation is None:
        # Without a warning: an axis that the kernels do not take is nothing the caller got wrong.
        candidates = {name: f for name, f in candidates.items() if not cannot.get(name)}
    return dispatch("hadamard_rotate", implementation, candidates, cannot, x, signs)


def _forward(x, signs, axis, block_size, inverse, implementation):
    return _rotate(x, signs, axis, block_size, inverse, implementation), signs


def _backward(axis, block_size, inverse, implementation, signs, cotangent):
    zero = None if signs is None else jnp.zeros_like(signs)
    return _rotate(cotangent, signs, axis, block_size, not inverse, implementation), zero


_rotate.defvjp(_forward, _backward)


def _check(x, block_size, signs, axis):
    if block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size {block_size} is not a power of two")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} is not one of an array of shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}; only floats rotate")
    if signs is not None and signs.shape != (x.shape[axis],):
        raise ValueError(
            f"signs have shape {signs.shape}; axis {axis} of {x.shape} needs ({x.shape[axis]},)"
        )
