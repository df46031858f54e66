"""Count the bytes that Pallas TPU kernels move between HBM and VMEM, from their grids and index maps.

A block of an operand is copied when its index differs from the step before. Every kernel in a traced
function is counted; arrays outside kernels are not.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np


def moved(fn, shape, dtype=jnp.bfloat16, arrays: int = 4) -> int:
    """Return the bytes moved by the kernels of a function of some arrays of one shape."""
    jaxpr = jax.make_jaxpr(fn)(*[jax.ShapeDtypeStruct(shape, dtype)] * arrays)
    return sum(_kernel_bytes(eqn, ()) for eqn in _kernels(jaxpr.jaxpr))


def splash_kernel(length: int, heads: int, block: int | None):
    """Make splash attention's causal kernel with blocks of one size, or its default blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sizes = None
    if block is not None:
        names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
        sizes = splash.BlockSizes(**{f"block_{name}": block for name in names})
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    return splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)


def splash_moved(kernel, shape) -> int:
    """Return the bytes moved by a one-head splash kernel, forward and backward, times batch and heads."""
    B, T, H, K = shape
    one_head = jax.ShapeDtypeStruct((1, T, K), jnp.bfloat16)

    def both(query, key, value, d_out):
        out, pull = jax.vjp(kernel, query, key, value)
        return out, pull(d_out)

    jaxpr = jax.make_jaxpr(both)(*[one_head] * 4)
    infos = kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info
    total = 0
    for eqn, info in zip(_kernels(jaxpr.jaxpr), infos, strict=True):
        scalars = [x for x in (info.data_next, info.block_mask, info.mask_next) if x is not None]
        total += _kernel_bytes(eqn, scalars)
    return B * H * total


def _kernels(jaxpr) -> Iterator:
    """Find the pallas_call equations of a jaxpr and of those inside it (of `cond`, the TPU's)."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
            continue
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _kernels(inner)


def _kernel_bytes(eqn, scalars) -> int:
    mapping = eqn.params["grid_mapping"]
    scalars = [jnp.asarray(x) for x in scalars[: mapping.num_index_operands]]
    total = 0
    for block in mapping.block_mappings:
        array = getattr(block, "array_aval", None) or block.array_shape_dtype
        sizes = [_size(d) for d in block.block_shape]
        last = None
        for step in itertools.product(*map(range, mapping.grid)):
            here = tuple(int(x) for x in block.compute_start_indices_interpret(step, *scalars))
            if here != last:
                # What lies past the end of the array is not copied.
                rows = [min(n, d - h) for n, d, h in zip(sizes, array.shape, here, strict=True)]
                total += int(np.prod([max(n, 0) for n in rows])) * array.dtype.itemsize
            last = here
    return total


def _size(dimension) -> int:
    """Return the length of a block along one axis; an axis left out of the block counts 1."""
    if isinstance(dimension, int):
        return dimension
    return getattr(dimension, "block_size", 1)
