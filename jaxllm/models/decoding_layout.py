"""The parameters as decoding wants them: layers apart on a CPU, cast once everywhere."""

import dataclasses
import functools

import jax

from jaxllm.models.cache import init_cache
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers_apart import is_apart, layers_apart
from jaxllm.models.low_rank import LowRank
from jaxllm.models.output_first import OutputFirst
from jaxllm.models.parameters import axes


def for_decoding(config: ModelConfig, params: dict) -> dict:
    """Return the same model, faster to read one token at a time; `models.decode` takes it.

    Matrices are cast to `config.dtype` once, not at every token. On a CPU the stack of layers is
    also taken apart, each matrix laid [out, in]: a scan would copy each layer's slice of the stack
    out before using it, which doubles the bytes that a token moves. On TPU and GPU
    the slice is read where it lies, and the scan stays.

    What is laid out already is returned as it is, the same arrays: a second call costs nothing, and what no
    layer holds (embeddings, head) is never copied. Layers may be stacked or a tuple (`layers_apart`).
    """
    layers, on_cpu = params["layers"], jax.default_backend() == "cpu"
    if is_apart(params):
        laid_out = [w for w in jax.tree.leaves(layers, is_leaf=_is_laid_out) if _is_laid_out(w)]
        if laid_out and all(one.weight_OI.dtype == config.dtype for one in laid_out):
            return params
        layers = tuple(_arranged(config, one, turned=on_cpu) for one in layers)
    elif on_cpu:
        layers = _unstacked(config, layers)
    else:
        layers = _arranged(config, layers, turned=False)
    return params | {"layers": layers}


def _is_laid_out(weight) -> bool:
    return isinstance(weight, OutputFirst)


def empty_cache(config: ModelConfig, params: dict, batch_size: int, max_length: int) -> dict:
    """Return the `init_cache` that goes with parameters, whichever way they are laid out."""
    return init_cache(config, batch_size, max_length, apart=is_apart(params))


# As one program, so that no copy of the stack lies between it and what is laid out.
@functools.partial(jax.jit, static_argnums=0)
def _unstacked(config, layers):
    layers = layers_apart({"layers": layers})["layers"]
    return tuple(_arranged(config, one, turned=True) for one in layers)


def _arranged(config, layers, *, turned):
    """Return a layer, or a stack of them, with each matrix cast and, if asked, turned: [out, in]."""

    def arrange(names, w):
        if not names.inputs:
            return w
        if isinstance(w, LowRank):
            w = w.merged(len(names.inputs), stacked=not turned)
        if isinstance(w, OutputFirst):
            return dataclasses.replace(w, weight_OI=w.weight_OI.astype(config.dtype))
        w = w.astype(config.dtype)
        return OutputFirst.of(w, len(names.inputs)) if turned else w

    return jax.tree.map(arrange, axes(config)["layers"], layers)
