"""A weight matrix with its outputs first, as a CPU multiplies a few rows fastest."""

import functools
import math
from dataclasses import dataclass

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight_OI"], meta_fields=["out_shape"])
@dataclass(frozen=True)
class OutputFirst:
    """A weight matrix that lies [out, in], as `models.for_decoding` makes it and torch keeps it.

    On a CPU an output of one row is then a sweep over contiguous memory; of several rows, what the library
    packs before it multiplies is x, and not the weights.
    """

    weight_OI: jax.Array
    out_shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: jax.Array, in_axes: int) -> "OutputFirst":
        """Turn a weight [in..., out...], of whose axes the first `in_axes` are inputs."""
        out_shape = weight.shape[in_axes:]
        return cls(weight.reshape(-1, math.prod(out_shape)).T, out_shape)

    def multiply(self, x_NI: jax.Array, *_) -> tuple[jax.Array, tuple[int, ...]]:
        """Return (x times the matrix [N, out] in x's dtype, the shape of the outputs)."""
        weight_OI = self.weight_OI.astype(x_NI.dtype)
        return jax.lax.dot_general(weight_OI, x_NI, (((1,), (1,)), ((), ()))).T, self.out_shape
