"""Weights on an integer grid: parameters in, parameters out."""

import jax
import jax.numpy as jnp

from jaxllm.axis_names import is_names, with_inputs
from jaxllm.quantize.rounding import absmax, zeropoint
from jaxllm.quantize.schemes import Scheme


def quantize_weights(params: dict, axes: dict, scheme: Scheme) -> dict:
    """Return parameters whose linear layers hold rounded weights; all others are as they were.

    What lies outside the layers (embeddings, the head) is left alone, and so are biases, gains and sinks.

    Args:
      params: layers stacked; each layer has grids of its own.
      axes: logical axis names, structured like the parameters (`models.axes`).
      scheme: bits, method and granularity.

    Examples:
      >>> from jaxllm.quantize import SCHEMES
      >>> params = {"in": jax.random.normal(jax.random.key(0), (2, 100, 3)), "bias": jnp.ones((2, 3))}
      >>> axes = {"in": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}
      >>> rounded = quantize_weights(params, axes, SCHEMES["zeropoint4"])
      >>> len(jnp.unique(rounded["in"][1, :, 2])) <= 16  # 4 bits: of one layer and output channel
      True
    """

    def quantize(names, weight):
        inputs = with_inputs(names).inputs
        if not inputs or "layers" not in names:
            return weight
        by_channel = scheme.weights == "channel"
        shared = tuple(i for i, n in enumerate(names) if (n in inputs if by_channel else n != "layers"))
        if scheme.method == "absmax":
            return absmax(weight, scheme.bits, jnp.max(jnp.abs(weight), shared, keepdims=True))
        least, most = (reduce(weight, shared, keepdims=True) for reduce in (jnp.min, jnp.max))
        return zeropoint(weight, scheme.bits, least, most)

    return jax.tree.map(quantize, axes, params, is_leaf=is_names)
