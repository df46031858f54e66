"""The stack of layers taken apart."""

import functools

import jax


def layers_apart(params: dict) -> dict:
    """Return the parameters with a tuple of layers in place of their stack.

    The same functions take both: a stack is scanned, layers that are apart run one after another
    and compile one after another. On a CPU that is faster, since nothing is copied into and out of
    stacks. The gradient of a stack taken apart is the stack of the gradients.

    Examples:
      >>> from jaxllm import models
      >>> config = models.get_preset("gpt2-nano")
      >>> apart = layers_apart(models.init(config, jax.random.key(0)))
      >>> apart["layers"][1]["mlp"]["in"].shape
      (64, 256)
    """
    if "parts" in params:  # a hybrid
        return params | {"parts": {name: layers_apart(part) for name, part in params["parts"].items()}}
    return params | {"layers": _cut(params["layers"])}


@functools.partial(jax.jit, inline=True)  # of the layers alone: what a program returns is copied
def _cut(layers) -> tuple:
    leaves, structure = jax.tree.flatten(layers)
    count = len(leaves[0])
    # `split` and not indexing: its transpose is one concatenation, not a sum of padded arrays.
    parts = [[part[0] for part in jax.lax.split(w, [1] * count)] for w in leaves]
    return tuple(jax.tree.unflatten(structure, one) for one in zip(*parts, strict=True))


def is_apart(params: dict) -> bool:
    """Return whether the layers are a tuple; also of what is no parameters at all."""
    if isinstance(params, dict) and "parts" in params:  # a hybrid
        return all(map(is_apart, params["parts"].values()))
    return isinstance(params, dict) and isinstance(params.get("layers"), tuple)
