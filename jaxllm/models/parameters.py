"""Declare every parameter once: shape, logical axes, initialiser."""

import zlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig


class Declaration(NamedTuple):
    """One parameter: its shape, the name of each axis, and the std of its normal initialiser."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float = 0.0
    mean: float = 0.0


def init(config: ModelConfig, key: jax.Array) -> dict:
    """Draw parameters: a nested dict of arrays in `config.param_dtype`, layers stacked first.

    GPT-2's scheme: normal with `init_std`, the two projections into the residual stream
    divided by sqrt(2 * num_layers), biases 0, gains 1. Every parameter has its own key, made from
    its path, so that adding one leaves the others as they were. Jit it with `out_shardings`
    to make each shard on its own device.

    Examples:
      >>> params = init(ModelConfig(num_layers=2, embed_dim=64, num_heads=4), jax.random.key(0))
      >>> params["layers"]["attn"]["query"].shape
      (2, 64, 4, 16)
    """
    return jax.tree.map(lambda box: box.value, _boxed(config, key), is_leaf=_is_box)


def axes(config: ModelConfig) -> dict:
    """Return the logical axis names of each parameter, a tree of tuples structured like `init`'s.

    Examples:
      >>> axes(ModelConfig())["layers"]["attn"]["query"]
      ('layers', 'embed', 'heads', 'head_dim')
    """
    boxed = jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))
    return jax.tree.map(lambda box: box.names, boxed, is_leaf=_is_box)


def shapes(config: ModelConfig) -> dict:
    """Return a ShapeDtypeStruct for each parameter, computing nothing."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def check_params(config: ModelConfig, params: dict) -> None:
    """Check that parameters, layers stacked, are a config's: others could answer too, with wrong numbers.

    Raises:
      UserError: names the first parameter that is missing, left over or of another shape.
    """
    declared = jax.tree_util.tree_leaves_with_path(declare(config), is_leaf=_is_declaration)
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


def declare(config: ModelConfig) -> dict:
    """Return the nested dict of `Declaration`s that `init`, `axes` and `shapes` are made from."""
    V, D = config.known_vocab_size, config.embed_dim
    std = config.init_std
    tree = {
        "embed": {"tokens": Declaration((V, D), ("vocab", "embed"), std)},
        "layers": {
            "attn_norm": _norm(config),
            "attn": _attention(config),
            "mlp_norm": _norm(config),
            "mlp": _mlp(config),
        },
        "final_norm": _norm(config),
    }
    # Layers are stacked: one array for all of them, scanned over its first axis.
    tree["layers"] = jax.tree.map(
        lambda one: one._replace(shape=(config.num_layers, *one.shape), axes=("layers", *one.axes)),
        tree["layers"],
        is_leaf=_is_declaration,
    )
    if config.position == "learned":
        positions = Declaration((config.context_length, D), ("position", "embed"), std)
        tree["embed"]["positions"] = positions
    if config.vocab_groups is not None:
        tree["head"] = _group_head(config)
    elif not config.tie_embeddings:
        tree["head"] = {"kernel": Declaration((D, V), ("embed", "vocab"), std)}
    return tree


def _norm(config: ModelConfig) -> dict:
    D = config.embed_dim
    scalar = config.norm == "rmsnorm_scalar"
    tree = {"scale": Declaration(() if scalar else (D,), () if scalar else ("embed",), mean=1.0)}
    if config.norm_bias:
        tree["bias"] = Declaration((D,), ("embed",))
    return tree


def _attention(config: ModelConfig) -> dict:
    D, K, std = config.embed_dim, config.head_dim, config.init_std
    H, G = config.num_heads, config.num_kv_heads
    tree = {
        "query": Declaration((D, H, K), ("embed", "heads", "head_dim"), std),
        "key": Declaration((D, G, K), ("embed", "kv_heads", "head_dim"), std),
        "value": Declaration((D, G, K), ("embed", "kv_heads", "head_dim"), std),
        "out": Declaration((H, K, D), ("heads", "head_dim", "embed"), std * _residual(config)),
    }
    if config.qkv_bias:
        tree["query_bias"] = Declaration((H, K), ("heads", "head_dim"))
        tree["key_bias"] = Declaration((G, K), ("kv_heads", "head_dim"))
        tree["value_bias"] = Declaration((G, K), ("kv_heads", "head_dim"))
    if config.out_bias:
        tree["out_bias"] = Declaration((D,), ("embed",))
    if config.sink_logit == "learned":
        tree["sink"] = Declaration((H,), ("heads",))
    return tree


def _mlp(config: ModelConfig) -> dict:
    D, F, std = config.embed_dim, config.mlp_dim, config.init_std
    tree = {
        "in": Declaration((D, F), ("embed", "mlp"), std),
        "out": Declaration((F, D), ("mlp", "embed"), std * _residual(config)),
    }
    if config.gated_mlp:
        tree["gate"] = Declaration((D, F), ("embed", "mlp"), std)
    if config.mlp_bias:
        tree["in_bias"] = Declaration((F,), ("mlp",))
        tree["out_bias"] = Declaration((D,), ("embed",))
        if config.gated_mlp:
            tree["gate_bias"] = Declaration((F,), ("mlp",))
    return tree


def _group_head(config: ModelConfig) -> dict:
    D, std = config.embed_dim, config.init_std
    G, K = config.vocab_groups.num_groups, config.vocab_groups.slots
    tree = {
        "groups": Declaration((D, G), ("embed", "vocab"), std),
        "groups_bias": Declaration((G,), ("vocab",)),
    }
    if config.group_head == "own":
        if not config.tie_embeddings:
            tree["tokens"] = Declaration((config.vocab_size, D), ("vocab", "embed"), std)
        return tree
    tree["slots"] = Declaration((D, K), ("embed", "vocab"), std)
    if config.group_head != "shared":
        width = {"hidden": (D, "embed"), "logits": (K, "vocab")}[config.group_head]
        shape, names = zip((G, "vocab_groups"), width, strict=True)
        tree["scale"] = Declaration(shape, names, mean=1.0)
        tree["shift"] = Declaration(shape, names)
    return tree


def _residual(config: ModelConfig) -> float:
    return (2 * config.num_layers) ** -0.5


class _Parameters(nn.Module):
    """Declare a nested dict of `Declaration`s as Linen parameters with logical axes."""

    declared: dict
    dtype: str
    path: str = ""

    @nn.compact
    def __call__(self, key: jax.Array) -> None:
        for name, entry in self.declared.items():
            path = f"{self.path}/{name}"
            if not _is_declaration(entry):
                _Parameters(entry, self.dtype, path, name=name)(key)
                continue
            initialise = nn.with_logical_partitioning(_initialise, entry.axes)
            # unbox=False: Linen would otherwise constrain the value on any mesh it finds.
            self.param(name, initialise, key, path, entry, self.dtype, unbox=False)


def _initialise(linen_key, key, path: str, entry: Declaration, dtype: str) -> jax.Array:
    # Linen numbers its keys in order of declaration; a key from the path does not depend on order.
    del linen_key
    if entry.std == 0.0:
        return jnp.full(entry.shape, entry.mean, dtype)
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return (entry.std * jax.random.normal(key, entry.shape, jnp.float32)).astype(dtype)


def _boxed(config: ModelConfig, key: jax.Array) -> dict:
    module = _Parameters(declare(config), config.param_dtype)
    return module.init(key, key)["params"]


def _is_declaration(x) -> bool:
    return isinstance(x, Declaration)


def _is_box(x) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)
