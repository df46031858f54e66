"""The part of the kernels that TPU and GPU share: blocks of rows, tiles of 128 columns."""

import math

import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxllm_kernels.hadamard_rotate.matrix import butterflies, times_signs_matrix

LANES = 128


def cannot(shape, axis, block_size, largest) -> str | None:
    """Return why the kernel cannot rotate this array, or None."""
    if len(shape) < 2 or 0 in shape or axis != len(shape) - 1:
        return "it rotates the last of two axes or more, none empty"
    unit = max(block_size, LANES)
    if block_size > largest:
        return f"it takes blocks of at most {largest}, not {block_size}"
    if shape[-1] % unit:
        return f"the axis has {shape[-1]} elements, not a multiple of {unit}"
    return None


def rotation_cost(x) -> pl.CostEstimate:
    """Return the work of rotating x: a product with a tile's matrix, three times as long in float32."""
    return pl.CostEstimate(
        flops=2 * LANES * x.size * (1 if x.dtype == jnp.bfloat16 else 3),
        bytes_accessed=2 * x.size * x.dtype.itemsize,
        transcendentals=0,
    )


def rotate_group(read, matrix, signs, block_size, inverse):
    """Return the rotated tiles [R, 128], float32, of one group of max(block_size, 128) columns.

    The transform of a large block is one of each tile, then one across the tiles; small blocks
    share a tile, and their matrix is block-diagonal.

    Args:
      read: j -> tile j of the group [R, 128], in the array's dtype.
      matrix: bfloat16 [128, 128], the Hadamard matrix of min(block_size, 128), repeated.
      signs: j -> float32 [1, 128], or None.
    """
    tiles = []
    for j in range(max(block_size // LANES, 1)):
        x = read(j)
        if x.dtype != jnp.bfloat16:
            x = x.astype(jnp.float32)
        if signs is not None and not inverse:
            x = (x.astype(jnp.float32) * signs(j)).astype(x.dtype)
        tiles.append(times_signs_matrix(x, matrix))
    tiles = [tile * (1 / math.sqrt(block_size)) for tile in butterflies(tiles)]
    if signs is not None and inverse:
        tiles = [tile * signs(j) for j, tile in enumerate(tiles)]
    return tiles
