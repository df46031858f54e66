"""Fixed random orthogonal matrices for the axes of parameters, drawn anew in every step and kept nowhere.

An axis is rotated by Q = M diag(s). The random signs s belong to one axis of one parameter. M is
block-diagonal and shared by all axes, so that a step draws one matrix for each size of block; a Haar
matrix whose columns are given independent signs is a Haar matrix again, and another one.

| strategy  | blocks of M                        | a step draws                                     |
|-----------|------------------------------------|--------------------------------------------------|
| hadamard  | Walsh-Hadamard, 128 wide           | nothing; the same bits on every machine          |
| block     | Haar, 128 wide                     | QR of one 128 x 128 matrix, and of the remainders |
| kronecker | Haar, as wide as the axis; from 4096 on, 4096 | QR of one matrix for each length of axis |
"""

import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxllm_kernels import hadamard_rotate as hadamard
from jaxllm_kernels.adamw_update import fold_in

from jaxllm.errors import UserError, unknown

# Strategy to its widest block. 128 is a matrix unit's own width, divides most models' axes, and a
# matrix both of whose axes rotate is mixed in groups of 16,384 entries.
STRATEGIES = {"hadamard": 128, "block": 128, "kronecker": 4096}


def resolve_block_size(strategy: str, block_size: int | None) -> int:
    """Return the widest block: the one asked for, or the strategy's own.

    Raises:
      UserError: an unknown strategy, or a block size that it cannot take.
    """
    if strategy not in STRATEGIES:
        raise unknown("rotation strategy", strategy, STRATEGIES)
    if block_size is None:
        return STRATEGIES[strategy]
    if block_size < 1:
        raise UserError(f"block_size is {block_size}; it must be at least 1")
    if strategy == "hadamard" and block_size & (block_size - 1):
        raise UserError(f"block_size is {block_size}; hadamard takes powers of two, such as 128")
    return block_size


def block_sizes(length: int, strategy: str, block_size: int) -> tuple[int, ...]:
    """Return the sizes of M's blocks along an axis, left to right; they add up to its length.

    Examples:
      >>> block_sizes(300, "hadamard", 128), block_sizes(300, "block", 128)
      ((128, 128, 32, 8, 4), (128, 128, 44))
    """
    if strategy == "hadamard":
        return tuple(hadamard.block_sizes(length, block_size))
    full, rest = divmod(length, block_size)
    return (block_size,) * full + (rest,) * (rest > 0)


def make_blocks(strategy: str, seed: jax.Array, sizes: Iterable[int]) -> dict[int, jax.Array]:
    """Return {size: orthogonal float32 [size, size]}, a function of the seed (uint32 [2]) and the size."""
    if strategy == "hadamard":
        return {size: jnp.asarray(hadamard.hadamard_matrix(size)) * size**-0.5 for size in sizes}
    return {size: _haar(fold_in(seed, size), size) for size in sizes}


def rotate_axis(
    x: jax.Array,
    axis: int,
    signs: jax.Array,
    sizes: tuple[int, ...],
    blocks: dict[int, jax.Array],
    inverse: bool,
    strategy: str,
) -> jax.Array:
    """Return Q x along an axis, or Q^T x.

    Args:
      x: float32 of any shape.
      axis: which one, from 0.
      signs: float32 [length of the axis] of 1 and -1.
      sizes: as `block_sizes` returned them.
      blocks: as `make_blocks` returned them.
      inverse: undo the rotation.
      strategy: a key of STRATEGIES.
    """
    if strategy == "hadamard" and axis == x.ndim - 1 and x.shape[axis] % 128 == 0 and not _is_split():
        # The kernel moves the array once; around a product XLA also transposes it.
        return hadamard.hadamard_rotate(x, block_size=sizes[0], signs=signs, inverse=inverse)
    signs = jnp.expand_dims(signs, [i for i in range(x.ndim) if i != axis])
    x = x if inverse else signs * x
    parts, start = [], 0
    for size, group in itertools.groupby(sizes):
        stop = start + size * len(list(group))
        part = jax.lax.slice_in_dim(x, start, stop, axis=axis)
        parts.append(_multiply(part, axis, blocks[size].T if inverse else blocks[size]))
        start = stop
    y = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
    return signs * y if inverse else y


def _is_split() -> bool:
    """Return whether a compiler will split the program over devices, which it cannot do to a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and jax.sharding.AxisType.Manual not in mesh.axis_types


def _multiply(x, axis, matrix):
    """Multiply every block along the axis by one matrix."""
    blocks = x.reshape(*x.shape[:axis], -1, len(matrix), *x.shape[axis + 1 :])
    # A matrix unit's default, one pass in bfloat16, would leave a matrix orthogonal to two digits.
    dot = functools.partial(jnp.tensordot, precision="highest")
    if axis == x.ndim - 1:
        return dot(blocks, matrix, (axis + 1, 1)).reshape(x.shape)
    return jnp.moveaxis(dot(matrix, blocks, (1, axis + 1)), 0, axis + 1).reshape(x.shape)


@functools.partial(jax.jit, static_argnames="size")
def _haar(seed, size):
    """Return an orthogonal matrix, the same bits on one kind of machine, near them on another.

    QR fixes the signs of its columns in a way of its own; random ones make it Haar (Mezzadri,
    arXiv math-ph/0609050).
    """
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jnp.linalg.qr(jax.random.normal(key, (size, size), jnp.float32))[0]
