"""The parameters as decoding wants them: layers apart on a CPU, cast once everywhere."""

import functools

import jax
import numpy as np

from jaxllm.models.architecture import decode, init_cache, prefill
from jaxllm.models.config import LanguageModel, check_decodes
from jaxllm.models.layers_apart import is_apart, layers_apart
from jaxllm.models.low_rank import LowRank
from jaxllm.models.parameters import axes


@functools.singledispatch
def for_decoding(config: LanguageModel, params: dict) -> dict:
    """Return the same model, faster to read one token at a time; `models.decode` takes it.

    Matrices are cast to `config.dtype` once, not at every token, and what is added to them is merged. On
    a CPU the stack of layers is also taken apart: a scan would copy each layer's slice of the stack
    out before using it, which doubles the bytes that a token moves. On TPU and GPU
    the slice is read where it lies, and the scan stays.

    What is laid out already is returned as it is, the same arrays: a second call costs nothing, and what no
    layer holds (embeddings, head) is never copied. On a CPU a stack that needs no cast is not copied either:
    its layers are views of its memory, which a step that would take it then leaves alone. Layers may be
    stacked or a tuple (`layers_apart`).

    Raises:
      UserError: the model is one that cannot decode.
    """
    check_decodes(config)
    layers = params["layers"]
    if is_apart(params):
        if all(_is_arranged(config, layer) for layer in layers):
            return params
        layers = tuple(_arranged(config, layer, stacked=False) for layer in layers)
    elif jax.default_backend() == "cpu":
        as_it_is = _is_arranged(config, layers) and all(map(_is_on_one_device, jax.tree.leaves(layers)))
        layers = _views(layers) if as_it_is else _unstacked(config, layers)
    else:
        layers = _arranged(config, layers, stacked=True)
    return params | {"layers": layers}


@prefill.register
def _read_prompt(config: LanguageModel, params: dict, tokens_BT: jax.Array, mask_BT, *, slots: int):
    cache = empty_cache(config, params, len(tokens_BT), slots)
    hidden_BTD, cache = decode(config, params, tokens_BT, cache, mask_BT=mask_BT)
    return hidden_BTD[:, -1], cache


def empty_cache(config: LanguageModel, params: dict, batch_size: int, max_length: int) -> dict:
    """Return the `init_cache` that goes with parameters, whichever way they are laid out."""
    return init_cache(config, batch_size, max_length, apart=is_apart(params))


def _is_on_one_device(w) -> bool:
    return isinstance(w, jax.Array) and not isinstance(w, jax.core.Tracer) and len(w.devices()) == 1


def _views(layers) -> tuple:
    """Return a stack's layers as arrays that share its memory, where it is aligned; only a CPU can."""
    leaves, structure = jax.tree.flatten(layers)

    def parts(w):
        [device] = w.devices()  # of a mesh of one device too
        place = device if w.committed else None
        return [jax.device_put(row, place, may_alias=True) for row in np.asarray(w)]

    return tuple(jax.tree.unflatten(structure, layer) for layer in zip(*map(parts, leaves), strict=True))


# As one program, so that no copy of the stack lies between it and the layers.
@functools.partial(jax.jit, static_argnums=0)
def _unstacked(config, layers):
    layers = layers_apart({"layers": layers})["layers"]
    return tuple(_arranged(config, layer, stacked=False) for layer in layers)


def _arranged(config, layers, *, stacked):
    """Return a layer, or a stack of them, with each matrix merged with what is added to it, and cast."""

    def arrange(names, w):
        if not names.inputs:
            return w
        if isinstance(w, LowRank):
            w = w.merged(len(names.inputs), stacked=stacked)
        return w.astype(config.dtype)

    return jax.tree.map(arrange, axes(config)["layers"], layers)


def _is_arranged(config, layer) -> bool:
    def arranged(names, w):
        return not names.inputs or (not isinstance(w, LowRank) and w.dtype == config.dtype)

    return all(jax.tree.leaves(jax.tree.map(arranged, axes(config)["layers"], layer)))
