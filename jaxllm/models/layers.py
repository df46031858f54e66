"""Run a model's layers: a stack in a scan, or a tuple one after another."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.cast_in_scan import cast_in_scan, cut_layer
from jaxllm.models.dropout import fold_in
from jaxllm.models.layer_view import LayerView
from jaxllm.models.parameters import axes
from jaxllm.parallel import HOST_MEMORY, on_host, to_device

_LAYER_INPUT = "layer_input"
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst=HOST_MEMORY,
    ),
}


class CacheView(Protocol):
    """A cache seen from one layer."""

    NAMES: tuple[str, ...]  # the entries of a cache that hold an array a layer, stacked or a tuple

    @classmethod
    def of(cls, cache: dict, arrays: Sequence[jax.Array], index) -> "CacheView":
        """Return a layer's view: of its own arrays, or of the stacks of all layers."""

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """Return what `of` was given, written to."""


def run_layers(
    config: Any,
    layer: Callable,
    params: Any,
    x_BTD: jax.Array,
    cache: dict | None,
    view: type[CacheView],
    pattern: Sequence[Any] = (None,),
    microbatches: int = 1,
    names: Any = None,
    first: int = 0,
    **rows: Any,
) -> tuple[jax.Array, dict, dict | None]:
    """Return (x_BTD after the last layer, {site: values stacked over layers}, the cache written to).

    Args:
      config: has dtype and remat.
      layer: (parameters, x_BTD, index, one of `pattern`, a layer's view of the cache or None, **rows) ->
        (x_BTD, captured, the view written to).
      params: layers stacked, a `LayerView` of such, or a tuple.
      view: makes a layer's view of the cache.
      pattern: constants of the layers, repeated; a scan runs so many of them in a step.
      microbatches: how many parts of the batch a layer takes one after another.
      names: `AxisNames` of one stack's parameters; None: those of the config's "layers".
      first: index of the first of these layers in the model, where they are a span of it.
      **rows: arrays [B, ...] for every layer, or None; `key` is a random one.
    """
    if microbatches > 1:
        layer = functools.partial(_by_microbatches, layer, microbatches)
    layer = functools.partial(layer, **rows)
    run = _each_layer if isinstance(params, tuple) else _scan_layers
    with jax.named_scope("layers"):
        if names is None:
            names = axes(config)["layers"]
        return run(config, layer, params, x_BTD, cache, view, pattern, names, first)


def _by_microbatches(layer, count, params, x_BTD, index, kind, cache, *, key=None, **rows):
    """Run the layer by microbatches, rematerialising each."""

    def cut(x):  # microbatch a takes rows a, a + count, ...: rows that a device holds already
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    # Accumulate gradients in float32: the scan sums them in the type of `wide`, and casting narrow weights
    # to it and back loses nothing.
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)

    @jax.checkpoint
    def one(wide, microbatch):
        x_BTD, rows, number = microbatch
        narrow = jax.tree.map(lambda w, like: w.astype(like.dtype), wide, params)
        x_BTD, captured, _ = layer(narrow, x_BTD, index, kind, None, key=fold_in(key, number), **rows)
        return x_BTD, captured

    numbers = None if key is None else jnp.arange(count, dtype=jnp.int32)
    cut_rows = (*jax.tree.map(cut, (x_BTD, rows)), numbers)
    _, (x_PBTD, captured) = jax.lax.scan(lambda _, rows: (None, one(wide, rows)), None, cut_rows)
    return join(x_PBTD), jax.tree.map(join, captured), cache


def _each_layer(config, layer, params, x_BTD, cache, view, pattern, names, first):
    """Run unstacked layers one after the other, each with a cache of its own."""
    del names
    captured, written = [], []
    for index, layer_params in enumerate(params, first):
        layer_cache = None
        if cache is not None:
            layer_cache = view.of(cache, [cache[name][index] for name in view.NAMES], index)
        run = _rematerialised(config, layer, pattern[(index - first) % len(pattern)], prevent_cse=True)
        x_BTD, seen, layer_cache = run(layer_params, x_BTD, index, layer_cache)
        captured.append(seen)
        if cache is not None:
            written.append(layer_cache.arrays)
    if cache is not None:
        for name, new in zip(view.NAMES, zip(*written, strict=True), strict=True):
            cache = cache | {name: (*cache[name][:first], *new, *cache[name][first + len(params) :])}
    return x_BTD, jax.tree.map(lambda *values: jnp.stack(values), *captured), cache


def _scan_layers(config, layer, params, x_BTD, cache, view, pattern, names, first):
    """Scan groups of len(pattern) layers, so that within the body each entry is a constant."""
    group = len(pattern)
    grouped = group > 1 or not any(map(on_host, jax.tree.leaves(params)))
    if isinstance(params, LayerView):
        stack = cast_in_scan(params.stack, names, config.dtype)
        params = dataclasses.replace(params, stack=stack)
    else:
        params = cast_in_scan(params, names, config.dtype)
    if grouped:
        params = jax.tree.map(lambda w: w.reshape(-1, group, *w.shape[1:]), params)

    indices = jnp.arange(len(jax.tree.leaves(params)[0]), dtype=jnp.int32)

    def body(carry, inputs):
        x_BTD, arrays = carry
        group_params, group_index = inputs
        captured = []
        for place, kind in enumerate(pattern):
            index = first + group_index * group + place
            layer_cache = None
            if cache is not None:
                layer_cache = view.of(cache, arrays, index)
            # Inside a scan the compiler cannot undo the recomputation, so nothing need prevent it; but it
            # makes straight code of a scan of one round, as of a pattern that covers all layers.
            cut = place if grouped else None  # an array of the host is cut into layers and no further
            run = _rematerialised(config, layer, kind, prevent_cse=len(indices) == 1, place=cut)
            x_BTD, seen, layer_cache = run(group_params, x_BTD, index, layer_cache)
            captured.append(seen)
            if cache is not None:
                arrays = layer_cache.arrays
        return (x_BTD, arrays), jax.tree.map(lambda *values: jnp.stack(values), *captured)

    arrays = None if cache is None else tuple(cache[name] for name in view.NAMES)
    (x_BTD, arrays), captured = jax.lax.scan(body, (x_BTD, arrays), (params, indices))
    captured = jax.tree.map(lambda v: v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]), captured)
    if cache is not None:
        cache = cache | dict(zip(view.NAMES, arrays, strict=True))
    return x_BTD, captured, cache


def _rematerialised(config, layer, kind, *, prevent_cse, place=None):
    """Fix the layer's entry of the pattern, and wrap it in jax.checkpoint if the config asks for it.

    With a `place` the parameters are a group's. Slice inside jax.checkpoint: a slice passed in would be
    saved as a residual for every layer, while the scan already holds its inputs.
    """

    def run(params, x_BTD, index, cache):
        params = jax.tree.map(to_device, params)
        params = cut_layer(params, place)
        if config.remat == "offload":
            x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
        if isinstance(params, LayerView):
            return params.run(lambda params, x_BTD: layer(params, x_BTD, index, kind, cache), x_BTD)
        return layer(params, x_BTD, index, kind, cache)

    if config.remat == "none":
        return run
    policy = _POLICIES.get(config.remat) or getattr(jax.checkpoint_policies, config.remat)
    return jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)
