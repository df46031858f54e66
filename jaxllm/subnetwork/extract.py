"""Cut a smaller model out of a larger one's parameters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.axis_names import is_names, with_inputs
from jaxllm.models import LayerView

_UNITS = ("heads", "kv_heads", "mlp")  # drawn for each layer


def extract(
    params: Any, axes: Any, indices: dict[str, jax.Array], branch_scale: jax.Array | None = None
) -> Any:
    """Return the parameters of a subnetwork, which the model's own functions run.

    Logical axis names alone say what is cut where. Each weight whose inputs are units (the two output
    projections) is multiplied by 1/p, p the part of them that is kept, so that the expectation of a
    sublayer over the draws is the whole sublayer:

        MHA(X) = 1/p_H sum_{i kept} head_i W_O^i        MLP(X) = 1/p_M act(X W_1[:, kept]) W_2[kept, :]

    Biases are not scaled. An axis without indices is left as it is; without any, so is every array.
    Linear in the parameters; the gradient is 0 where nothing was kept.

    Args:
      params: pytree of arrays, layers stacked on the first axis.
      axes: pytree of logical axis names, structured like `params` (`models.axes`).
      indices: what `sample` returned.
      branch_scale: [L], multiplies the output projections of each layer (weights from units to "embed")
        once more, for instance by the inverse of the layer's probability to be kept; None: nothing does.

    Examples:
      >>> from jaxllm import models
      >>> from jaxllm.subnetwork import Rates, sample, shrink
      >>> config, rates = models.get_preset("gpt2-nano"), Rates(layers=0.5, heads=0.5, mlp=0.25)
      >>> params = models.init(config, jax.random.key(0))
      >>> small = extract(params, models.axes(config), sample(config, rates, jax.random.key(1)))
      >>> small["layers"]["mlp"]["in"].shape
      (1, 64, 64)
      >>> models.apply(shrink(config, rates), small, jnp.zeros((1, 3), int)).shape
      (1, 3, 256)

    References:
      Li et al., Evolving Subnetwork Training for Large Language Models (arXiv 2406.06962).
    """

    indices = {name: jnp.asarray(index) for name, index in indices.items()}

    def cut(names, w):
        if names[:1] != ("layers",):
            return w
        names, scale = with_inputs(names), 1.0
        if "layers" in indices:
            w = _take(w, indices["layers"], 0)
        for axis, name in enumerate(names):
            if name in _UNITS and name in indices:
                size = w.shape[axis]
                w = _take_units(w, indices[name], axis)
                if name in names.inputs:
                    scale *= size / w.shape[axis]
        if branch_scale is not None and "embed" in names.outputs and set(_UNITS) & set(names.inputs):
            of_layer = branch_scale[indices["layers"]] if "layers" in indices else branch_scale
            scale = scale * of_layer.reshape(-1, *[1] * (w.ndim - 1))
        elif scale == 1.0:
            return w
        return (w.astype(jnp.float32) * scale).astype(w.dtype)

    return jax.tree.map(cut, axes, params, is_leaf=is_names)


def extract_in_turn(
    params: Any, axes: Any, indices: dict[str, jax.Array], branch_scale: jax.Array | None = None
) -> Any:
    """Return what `extract` does, with each layer cut only when it runs: "layers" is a `models.LayerView`.

    The same subnetwork, for layers in the host's memory, which come whole, one after another. Layers that are
    not kept are fetched too, and pass on their input.

    Args:
      params: a model's, layers stacked on the first axis.
      axes: see `extract`.
      indices: see `extract`.
      branch_scale: see `extract`.
    """
    stack, layers = params["layers"], indices.get("layers")
    count = len(jax.tree.leaves(stack)[0])

    def spread(x):
        """Return rows of kept layers as rows of all."""
        return x if layers is None else jnp.zeros((count, *x.shape[1:]), x.dtype).at[layers].set(x)

    rows = {name: spread(index) for name, index in indices.items() if name != "layers"}, branch_scale
    kept = None if layers is None else jnp.zeros(count, bool).at[layers].set(True)

    def cut(layer, rows):
        layer, rows = jax.tree.map(lambda x: x[None], (layer, rows))
        return jax.tree.map(lambda w: w[0], extract(layer, axes["layers"], *rows))

    return params | {"layers": LayerView(stack, rows, kept, cut)}


def _take_units(w, index_LPn, axis: int):
    """Return the units kept of every layer's every part: [L, ..., units, ...] to [L, ..., P n, ...]."""
    parts, kept = index_LPn.shape[1:]
    before, after = w.shape[:axis], w.shape[axis + 1 :]
    w = w.reshape(*before, parts, -1, *after)
    # Batched over layers and parts, so that a part of a sharded axis is read where it lies.
    of_layer = jax.vmap(partial(_take, axis=axis - 1), in_axes=(axis - 1, 0), out_axes=axis - 1)
    return jax.vmap(of_layer)(w, index_LPn).reshape(*before, parts * kept, *after)


def _take(w, index_n, axis: int):
    """Return w[index] along an axis, for indices that differ from each other."""
    size, kept = w.shape[axis], index_n.shape[0]

    @jax.custom_vjp
    def take(w, index_n):
        return jnp.take(w, index_n, axis, mode="clip", unique_indices=True, indices_are_sorted=True)

    def forward(w, index_n):
        return take(w, index_n), index_n

    def backward(index_n, gradient):
        # Scattered by reading too, place by place: unlike a scatter that fuses with what follows.
        place = jnp.full(size, kept, index_n.dtype).at[index_n].set(jnp.arange(kept, dtype=index_n.dtype))
        return jnp.take(gradient, place, axis, mode="fill", fill_value=0), None

    take.defvjp(forward, backward)
    return take(w, index_n)
