"""Weights on an integer grid: parameters in, parameters out."""

import jax
import jax.numpy as jnp

from jaxllm.quantize.rounding import absmax, zeropoint
from jaxllm.quantize.schemes import Scheme


def quantize_weights(params: dict, axes: dict, scheme: Scheme) -> dict:
    """Return parameters whose linear layers hold rounded weights; all others are as they were.

    Embeddings, the head, biases, gains and sinks are left alone.

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
        outputs = output_axes(names)
        if outputs is None:
            return weight
        apart = ("layers", *outputs) if scheme.weights == "channel" else ("layers",)
        shared = tuple(i for i, name in enumerate(names) if name not in apart)
        if scheme.method == "absmax":
            return absmax(weight, scheme.bits, jnp.max(jnp.abs(weight), shared, keepdims=True))
        least, most = (reduce(weight, shared, keepdims=True) for reduce in (jnp.min, jnp.max))
        return zeropoint(weight, scheme.bits, least, most)

    return jax.tree.map(quantize, axes, params, is_leaf=lambda node: isinstance(node, tuple))


def output_axes(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return which axes of a parameter are a linear layer's outputs; None if it is no such weight.

    Weights lie as [in..., out...] and either read the residual stream, whose axis then comes first,
    or write it.

    Examples:
      >>> output_axes(("layers", "embed", "heads", "head_dim"))
      ('heads', 'head_dim')
      >>> output_axes(("layers", "heads", "head_dim", "embed"))
      ('embed',)
      >>> output_axes(("vocab", "embed")) is None
      True
    """
    own = tuple(name for name in names if name != "layers")
    if "embed" not in own or len(own) < 2 or {"vocab", "position"} & set(own):
        return None
    return own[1:] if own[0] == "embed" else ("embed",)
