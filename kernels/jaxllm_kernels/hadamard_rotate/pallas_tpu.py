"""Blockwise Walsh-Hadamard transform as a Pallas TPU kernel: one read and one write of the array."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllm_kernels.compat import shape_like
from jaxllm_kernels.hadamard_rotate.matrix import hadamard_matrix
from jaxllm_kernels.hadamard_rotate.pallas_body import LANES, rotate_group, rotation_cost
from jaxllm_kernels.hadamard_rotate.pallas_body import cannot as body_cannot

_LARGEST_BLOCK = 4096
_BLOCK_ELEMENTS = 256 * 1024  # 1 MiB in float32; in and out double-buffered, and its tiles: 6 MiB


def cannot(shape, axis, block_size, dtype) -> str | None:
    """Return why the kernel cannot rotate this array, or None."""
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"it takes bfloat16 and float32, not {dtype}"
    reason = body_cannot(shape, axis, block_size, _LARGEST_BLOCK)
    if reason is None and len(shape) > 2 and shape[-2] % 16:
        return f"joining the leading axes of {shape} would copy it (not a multiple of 16 rows)"
    return reason


def hadamard_rotate(x, signs, *, block_size, inverse, interpret=False):
    """Return the rotation of x along its last axis; arguments as of the api."""
    rows = x.reshape(-1, x.shape[-1])
    R, C = rows.shape
    group = max(block_size, LANES)
    # As many groups as make a block 1024 columns wide, if they divide the row.
    block_C = next(g for g in range(max(1024 // group, 1) * group, 0, -group) if C % g == 0)
    block_R = min(R, max(_BLOCK_ELEMENTS // block_C // 32 * 32, 32))
    small = min(block_size, LANES)
    matrix = np.kron(np.eye(LANES // small, dtype=np.float32), hadamard_matrix(small))
    operands = [rows, jnp.asarray(matrix, jnp.bfloat16)]
    specs = [
        pl.BlockSpec((block_R, block_C), lambda i, j: (i, j)),
        pl.BlockSpec((LANES, LANES), lambda i, j: (0, 0)),
    ]
    if signs is not None:
        operands.append(signs.astype(jnp.float32).reshape(1, C))
        specs.append(pl.BlockSpec((1, block_C), lambda i, j: (0, j)))
    kernel = functools.partial(_kernel, group=group, block_size=block_size, inverse=inverse)
    rotated = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(R, block_R), C // block_C),
        in_specs=specs,
        out_specs=specs[0],
        out_shape=shape_like(rows.shape, rows.dtype, *operands),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=rotation_cost(x),
        interpret=interpret,
        name="hadamard_rotate",
    )(*operands)
    return rotated.reshape(x.shape)


def _kernel(x_ref, matrix_ref, *refs, group, block_size, inverse):
    out_ref, signs_ref = refs[-1], refs[0] if len(refs) > 1 else None
    for start in range(0, x_ref.shape[1], group):

        def columns(j, start=start):
            return slice(start + j * LANES, start + (j + 1) * LANES)

        tiles = rotate_group(
            lambda j: x_ref[:, columns(j)],
            matrix_ref[...],
            None if signs_ref is None else lambda j: signs_ref[:, columns(j)],
            block_size,
            inverse,
        )
        for j, tile in enumerate(tiles):
            out_ref[:, columns(j)] = tile.astype(out_ref.dtype)
