"""Blockwise Walsh-Hadamard transform as a Pallas Triton kernel: one read and one write of the array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm_kernels.compat import shape_like
from jaxllm_kernels.declared_cost import declared_cost
from jaxllm_kernels.hadamard_rotate.matrix import hadamard_matrix
from jaxllm_kernels.hadamard_rotate.pallas_body import LANES, rotate_group, rotation_cost
from jaxllm_kernels.hadamard_rotate.pallas_body import cannot as body_cannot

_LARGEST_BLOCK = {2: 1024, 4: 512}  # bytes of an element: its tiles live in registers
_STEPS = 4  # tiles that a program takes, one after the other, with one load of the matrix


def _tile(block_size, itemsize) -> tuple[int, int]:
    """Return (rows of a tile, warps): on an H100 the fastest that do not spill kilobytes on an A100."""
    if block_size > 256:
        return 16, 8  # the fewest rows that Triton multiplies
    return (64, 4) if itemsize == 2 else (16, 4)


def cannot(shape, axis, block_size, dtype) -> str | None:
    """Return why the kernel cannot rotate this array, or None."""
    return body_cannot(shape, axis, block_size, _LARGEST_BLOCK.get(dtype.itemsize, 512))


def hadamard_rotate(x, signs, *, block_size, inverse, interpret=False):
    """Return the rotation of x along its last axis; arguments as of the api."""
    rows = x.reshape(-1, x.shape[-1])
    R, C = rows.shape
    group = max(block_size, LANES)
    small = min(block_size, LANES)
    matrix = np.kron(np.eye(LANES // small, dtype=np.float32), hadamard_matrix(small))
    operands = [rows, jnp.asarray(matrix, jnp.bfloat16)]
    if signs is not None:
        operands.append(signs.astype(jnp.float32).reshape(1, C))
    whole = [pl.BlockSpec(o.shape, lambda i, j: (0, 0)) for o in operands]
    tile, warps = _tile(block_size, x.dtype.itemsize)
    kernel = functools.partial(
        _kernel, rows=R, tile=tile, group=group, block_size=block_size, inverse=inverse
    )
    call = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(R, tile * _STEPS), C // group),
        in_specs=whole,
        out_specs=whole[0],
        out_shape=shape_like(rows.shape, rows.dtype, *operands),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name="hadamard_rotate",
    )
    with declared_cost(rotation_cost(x)):
        rotated = call(*operands)
    return rotated.reshape(x.shape)


def _kernel(x_ref, matrix_ref, *refs, rows, tile, group, block_size, inverse):
    out_ref, signs_ref = refs[-1], refs[0] if len(refs) > 1 else None
    start, first_column = pl.program_id(0) * (tile * _STEPS), pl.program_id(1) * group
    matrix = matrix_ref[...]

    def columns(j):
        return pl.ds(first_column + j * LANES, LANES)

    def step(i, carry):
        first_row = start + i * tile
        at = pl.ds(first_row, tile)
        exists = first_row + jnp.arange(tile, dtype=jnp.int32) < rows
        mask = jnp.broadcast_to(exists[:, None], (tile, LANES))
        tiles = rotate_group(
            lambda j: plgpu.load(x_ref.at[at, columns(j)], mask=mask, other=0),
            matrix,
            None if signs_ref is None else lambda j: signs_ref[:, columns(j)],
            block_size,
            inverse,
        )
        for j, rotated in enumerate(tiles):
            plgpu.store(out_ref.at[at, columns(j)], rotated.astype(out_ref.dtype), mask=mask)
        return carry

    jax.lax.fori_loop(0, _STEPS, step, 0)
