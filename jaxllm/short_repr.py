"""What objects that hold arrays print of them: how many numbers, never the numbers."""

import math
from typing import Any

import jax


def holding(tree: Any) -> str:
    """Say how much a pytree of arrays holds, without reading any of them.

    Examples:
      >>> import jax.numpy as jnp
      >>> holding({"w": jnp.zeros((1000, 2000), "bfloat16"), "b": jnp.zeros(20, "float32")})
      '2,000,020 numbers of bfloat16 and float32, 4.0 MB'
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    counts = [math.prod(leaf.shape) for leaf in leaves]
    megabytes = sum(n * leaf.dtype.itemsize for n, leaf in zip(counts, leaves, strict=True)) / 1e6
    types = " and ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    return f"{sum(counts):,} numbers of {types}, {megabytes:,.1f} MB"
