"""Casts of stacked weights that neither copy the stack nor widen its gradient."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.low_rank import LowRank
from jaxllm.parallel import on_host


class _Stack(NamedTuple):
    weight: jax.Array  # [L, ...] in its own type: forward value (stop-gradient)
    cast: jax.Array  # [L, ...] in the products' type: gradient carrier (value unused)


def cast_in_scan(params: dict, axes: dict, dtype: str) -> dict:
    """Return stacked parameters to scan over; `cut_layer` slices and casts one layer of them.

    Products' weights wider than the products' type become pairs, so that a scan stacks their gradients in
    the type in which products give them: half the bytes of a float32 stack, and the same numbers. So do
    biases of heads. The rest stays as it is: norms and sinks are computed in float32. So do stacks in the
    host's memory: each layer is cast on its way.

    Args:
      params: each array [L, ...].
      axes: `AxisNames`, structured like them.
      dtype: of the products.
    """
    narrow = jnp.dtype(dtype)

    def pair(names, w):
        if isinstance(w, LowRank):
            return dataclasses.replace(w, weight=pair(names, w.weight))
        # Unpaired, the gradient of a [heads, head_dim] bias has other last bits on a CPU.
        head_bias = names[-2:] in (("heads", "head_dim"), ("kv_heads", "head_dim"))
        if not (names.inputs or head_bias) or w.dtype.itemsize <= narrow.itemsize or on_host(w):
            return w
        return _Stack(jax.lax.stop_gradient(w), w.astype(narrow))

    return jax.tree.map(pair, axes, params)


def cut_layer(params: dict, index: int | None) -> dict:
    """Return one layer's parameters of a group, or the only one's (None), weights in the products' type."""
    cut = params if index is None else jax.tree.map(lambda w: w[index], params)
    return jax.tree.map(
        lambda w: _cast(*w) if isinstance(w, _Stack) else w, cut, is_leaf=lambda w: isinstance(w, _Stack)
    )


@jax.custom_jvp
def _cast(weight, cast):
    weight = jax.lax.platform_dependent(weight, tpu=_hidden, default=lambda weight: weight)
    return weight.astype(cast.dtype)


@_cast.defjvp
def _cast_jvp(primals, tangents):
    return _cast(*primals), tangents[1]


def _hidden(weight):
    """Return the weight behind a barrier on its bits.

    XLA for TPUs hoists the cast and keeps a bfloat16 copy of the whole stack for the step. It moves a cast
    past any operation but one on the bits.
    """
    bits = jax.lax.bitcast_convert_type(weight, f"uint{8 * weight.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), weight.dtype)
