"""AdamW step as a Pallas TPU kernel, in place, with the chip's own random bits as an option.

XLA's loop already runs at the speed of memory (kernels/README.md has the figures), so this kernel
is there for its generator alone and runs only when asked for by name.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllm_kernels.adamw_update.arithmetic import step_float32, store
from jaxllm_kernels.compat import shape_like

# Elements of a block. Seven arrays of bfloat16 or float32, double-buffered, and the float32
# temporaries stay below 8 MiB, half of the default limit of VMEM a kernel.
_BLOCK_ELEMENTS = 128 * 1024
_BLOCK_COLUMNS = 1024


def cannot(shape: tuple[int, ...]) -> str | None:
    """Return why an array of this shape cannot take the kernel, or None."""
    if len(shape) < 2 or 0 in shape:
        return f"the array has shape {shape}; the kernel takes two axes or more, none empty"
    if len(shape) > 2 and shape[-2] % 16:
        return (
            f"joining the leading axes of {shape} would copy it, since the last but one is not a "
            "multiple of 16 rows"
        )
    return None


def adamw_update(
    w, m, v, g, scalars, words, seed, *, round_weights, round_moments, interpret=False
):
    """Return the new (w, m, v), written over the old ones.

    Args:
      words: None, or uint16 or uint32 of w's shape; None with rounding on: the hardware generator.
      seed: int32 [2] of the hardware generator; ignored with words.
    """
    shape = w.shape
    rows_columns = (-1, shape[-1])
    arrays = [x.reshape(rows_columns) for x in (w, m, v, g)]
    if words is not None:
        arrays.append(words.reshape(rows_columns))
    R, C = arrays[0].shape
    block_C = min(C, _BLOCK_COLUMNS)
    block_R = min(R, max(_BLOCK_ELEMENTS // block_C // 32 * 32, 32))
    block = pl.BlockSpec((block_R, block_C), lambda i, j, *_: (i, j))
    kernel = functools.partial(
        _kernel, has_words=words is not None, round_weights=round_weights, round_moments=round_moments
    )
    new = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(pl.cdiv(R, block_R), pl.cdiv(C, block_C)),
            in_specs=[block] * len(arrays),
            out_specs=[block] * 3,
        ),
        out_shape=[shape_like(x.shape, x.dtype, *arrays) for x in arrays[:3]],
        input_output_aliases={2: 0, 3: 1, 4: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=20 * w.size,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *arrays[:3])),
            transcendentals=2 * w.size,
        ),
        interpret=interpret,
        name="adamw_update",
    )(scalars, seed, *arrays)
    return tuple(x.reshape(shape) for x in new)


def _kernel(scalars, seed, *refs, has_words, round_weights, round_moments):
    w, m, v, g = refs[:4]
    outputs = refs[-3:]
    words = None
    if has_words:
        words = refs[4][...].astype(jnp.uint32)
    elif round_weights or round_moments:
        # Every block seeds anew, so that its words do not depend on which core takes it. Seeds are
        # hashes, so two steps or parameters do not meet in a run of neighbouring ones.
        block = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
        pltpu.prng_seed(seed[0], seed[1] + block)
        words = jax.lax.bitcast_convert_type(pltpu.prng_random_bits(w.shape), jnp.uint32)
    new = step_float32(w[...], m[...], v[...], g[...], scalars)
    dtypes = [output.dtype for output in outputs]
    for output, value in zip(
        outputs, store(new, dtypes, words, round_weights, round_moments), strict=True
    ):
        output[...] = value
