"""The cost of a Pallas Triton kernel, written where a reader of the compiled program finds it."""

from jax.experimental import pallas as pl
from jax.experimental.xla_metadata import set_xla_metadata


def declared_cost(cost: pl.CostEstimate):
    """Return a context in which `pallas_call` carries its FLOPs into the compiled program.

    A TPU's compiler is told by `pallas_call(cost_estimate=...)`, which Triton's lowering drops; an
    attribute of the call, `kernel_flops`, stays.
    """
    return set_xla_metadata(kernel_flops=str(int(cost.flops)))
