"""The parameters as decoding wants them: layers apart on a CPU, cast once everywhere."""

import functools

import jax

from jaxllm.models.config import ModelConfig
from jaxllm.models.layers_apart import layers_apart
from jaxllm.models.linear import to_panels

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
    """
    return _arrange(params, dtype=config.dtype, apart=jax.default_backend() == "cpu")


@functools.partial(jax.jit, static_argnames=("dtype", "apart"))
def _arrange(params, *, dtype, apart):
    layers = {
        block: {
            name: w.astype(dtype) if name in _MATRICES.get(block, ()) else w for name, w in tree.items()
        }
        for block, tree in params["layers"].items()
    }
    params = params | {"layers": layers}
    if not apart:
        return params
    params = layers_apart(params)
    return params | {"layers": tuple(_in_panels(one) for one in params["layers"])}


def _in_panels(layer):
    layer = {block: dict(tree) for block, tree in layer.items()}
    for block, matrices in _MATRICES.items():
        for name, in_axes in matrices.items():
            if name in layer[block]:
                layer[block][name] = to_panels(layer[block][name], in_axes)
    return layer
