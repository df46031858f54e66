"""The parameters as decoding wants them: layers apart on a CPU, cast once everywhere."""

import dataclasses
import functools

import jax

from jaxllm.models.cache import init_cache
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers_apart import is_apart, layers_apart
from jaxllm.models.linear import Panels, to_panels

# How many axes of each matrix are summed over; what is not here stays as it is.
_MATRICES = {
    "attn": {"query": 1, "key": 1, "value": 1, "out": 2},
    "mlp": {"in": 1, "gate": 1, "out": 1},
}


def for_decoding(config: ModelConfig, params: dict) -> dict:
    """Return the same model, faster to read one token at a time; `models.decode` takes it.

    Matrices are cast to `config.dtype` once, not at every token. On a CPU the stack of layers is
    also taken apart, each matrix cut into panels: a scan would copy each layer's slice of the stack
    out before using it, which doubles the bytes that a token moves. On TPU and GPU
    the slice is read where it lies, and the scan stays.

    What is laid out already is returned as it is, the same arrays: a second call costs nothing, and what no
    layer holds (embeddings, head) is never copied. Layers may be stacked or a tuple (`layers_apart`).
    """
    layers, on_cpu = params["layers"], jax.default_backend() == "cpu"
    if is_apart(params):
        layers = tuple(_arranged(one, config.dtype, in_panels=on_cpu) for one in layers)
    elif on_cpu:
        layers = _unstacked(layers, config.dtype)
    else:
        layers = _arranged(layers, config.dtype, in_panels=False)
    return params | {"layers": layers}


def empty_cache(config: ModelConfig, params: dict, batch_size: int, max_length: int) -> dict:
    """Return the `init_cache` that goes with parameters, whichever way they are laid out."""
    return init_cache(config, batch_size, max_length, apart=is_apart(params))


# As one program, so that no copy of the stack lies between it and the panels.
@functools.partial(jax.jit, static_argnames="dtype")
def _unstacked(layers, dtype):
    layers = layers_apart({"layers": layers})["layers"]
    return tuple(_arranged(one, dtype, in_panels=True) for one in layers)


def _arranged(layers, dtype, *, in_panels):
    """Return a layer, or a stack of them, with each matrix cast and, if asked, in panels."""

    def arrange(matrix, in_axes):
        if isinstance(matrix, Panels):
            return dataclasses.replace(matrix, weight_PIW=matrix.weight_PIW.astype(dtype))
        matrix = matrix.astype(dtype)
        return to_panels(matrix, in_axes) if in_panels else matrix

    return {
        block: {
            name: arrange(w, _MATRICES[block][name]) if name in _MATRICES.get(block, ()) else w
            for name, w in tree.items()
        }
        for block, tree in layers.items()
    }
