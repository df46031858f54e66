"""Draw the parameters that a config declares; their axes and shapes."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.architecture import Declaration, declare, is_declaration
from jaxllm.models.config import LanguageModel


def init(config: LanguageModel, key: jax.Array) -> dict:
    """Draw parameters: a nested dict of arrays in `config.param_dtype`, layers stacked first.

    A transformer's by GPT-2's scheme: normal with `init_std`, the two projections into the residual stream
    divided by sqrt(2 * num_layers), biases 0, gains 1. Every parameter has its own key, made from
    its path, so that adding one leaves the others as they were. Jit it with `out_shardings`
    to make each shard on its own device.

    Examples:
      >>> from jaxllm.models import ModelConfig
      >>> params = init(ModelConfig(num_layers=2, embed_dim=64, num_heads=4), jax.random.key(0))
      >>> params["layers"]["attn"]["query"].shape
      (2, 64, 4, 16)
    """
    return draw(declare(config), config.param_dtype, key)


def draw(declared: dict, dtype: str, key: jax.Array) -> dict:
    """Draw a nested dict of `Declaration`s, or a part of what a config declares: the same numbers."""
    return _linen()(declared, dtype).init(key, key)["params"]


def axes(config: LanguageModel) -> dict:
    """Return the logical axis names of each parameter, `AxisNames` in a tree structured like `init`'s.

    They equal plain tuples, and know which axes are inputs of a product.

    Examples:
      >>> from jaxllm.models import ModelConfig
      >>> axes(ModelConfig())["layers"]["attn"]["query"]
      ('layers', 'embed', 'heads', 'head_dim')
      >>> axes(ModelConfig())["layers"]["attn"]["query"].inputs
      ('embed',)
    """
    return jax.tree.map(lambda one: one.names, declare(config), is_leaf=is_declaration)


def shapes(config: LanguageModel) -> dict:
    """Return a ShapeDtypeStruct for each parameter, computing nothing."""
    shaped = lambda one: jax.ShapeDtypeStruct(one.shape, config.param_dtype)
    return jax.tree.map(shaped, declare(config), is_leaf=is_declaration)


def check_params(config: LanguageModel, params: dict) -> None:
    """Check that parameters, layers stacked, are a config's: others could answer too, with wrong numbers.

    Raises:
      UserError: names the first parameter that is missing, left over or of another shape.
    """
    declared = jax.tree_util.tree_leaves_with_path(declare(config), is_leaf=is_declaration)
    expected = {jax.tree_util.keystr(path): one.shape for path, one in declared}
    given = jax.tree_util.tree_leaves_with_path(params)
    found = {jax.tree_util.keystr(path): np.shape(x) for path, x in given}
    for path in [*expected, *found]:
        if found.get(path) != expected.get(path):
            shapes = (f"shape {tree[path]}" if path in tree else "none" for tree in (found, expected))
            raise UserError(
                "parameters of another config: {} has {} and the config declares {}; give both of one "
                "model".format(path, *shapes)
            )


@functools.cache
def _linen():
    """Return the Linen module that draws a nested dict of `Declaration`s."""
    import flax.linen as nn  # slow to import: here, only those who draw parameters wait for it

    class Parameters(nn.Module):
        declared: dict
        dtype: str
        path: str = ""

        @nn.compact
        def __call__(self, key: jax.Array) -> None:
            for name, entry in self.declared.items():
                path = f"{self.path}/{name}"
                if not is_declaration(entry):
                    Parameters(entry, self.dtype, path, name=name)(key)
                    continue
                self.param(name, _initialise, key, path, entry, self.dtype)

    return Parameters


def _initialise(linen_key, key, path: str, entry: Declaration, dtype: str) -> jax.Array:
    # Linen numbers its keys in order of declaration; a key from the path does not depend on order.
    del linen_key
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    if entry.draw is not None:
        return entry.draw(key, entry.shape).astype(dtype)
    if entry.std == 0.0:
        return jnp.full(entry.shape, entry.mean, dtype)
    return (entry.std * jax.random.normal(key, entry.shape, jnp.float32)).astype(dtype)
