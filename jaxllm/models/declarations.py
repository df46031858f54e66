"""What parameters a config has: of each its shape, the names of its axes, its initialiser."""

import math
from typing import NamedTuple

import jax

from jaxllm.axis_names import AxisNames


class Declaration(NamedTuple):
    """One parameter, its axes [in..., out...] if it is a product's weight, and its normal initialiser.

    `inputs` are the axes that the product sums over, () if it is no product's weight: a gain, a bias, a
    sink. All that needs to know which axis is which reads it, as `names.inputs`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    std: float = 0.0
    mean: float = 0.0

    @property
    def names(self) -> AxisNames:
        """Return the names of the axes, as everything outside takes them."""
        return AxisNames(self.axes, self.inputs)

    @property
    def size(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)


def declare(config) -> dict:
    """Return the nested dict of `Declaration`s that all of `models` is made from, layers stacked.

    Args:
      config: a `ModelConfig`, which counts what is declared here and so cannot be imported.
    """
    V, D = config.known_vocab_size, config.embed_dim
    std = config.init_std
    tree = {
        "embed": {"tokens": Declaration((V, D), ("vocab", "embed"), ("vocab",), std)},
        "layers": {
            "attn_norm": _norm(config),
            "attn": declare_attention(config),
            "mlp_norm": _norm(config),
            "mlp": declare_mlp(config),
        },
    }
    if config.norm_place != "post":
        tree["final_norm"] = _norm(config)
    # Layers are stacked: one array for all of them, scanned over its first axis.
    tree["layers"] = jax.tree.map(
        lambda one: one._replace(shape=(config.num_layers, *one.shape), axes=("layers", *one.axes)),
        tree["layers"],
        is_leaf=is_declaration,
    )
    if config.position == "learned":
        positions = Declaration((config.context_length, D), ("position", "embed"), ("position",), std)
        tree["embed"]["positions"] = positions
    if config.vocab_groups is not None:
        tree["head"] = _group_head(config)
    elif not config.tie_embeddings:
        tree["head"] = {"kernel": Declaration((D, V), ("embed", "vocab"), ("embed",), std)}
    return tree


def _norm(config, axis: str = "embed") -> dict:
    shape, axes = ({"embed": config.embed_dim, "head_dim": config.head_dim}[axis],), (axis,)
    scalar = config.norm == "rmsnorm_scalar"
    tree = {"scale": Declaration(() if scalar else shape, () if scalar else axes, mean=1.0)}
    if config.norm_bias:
        tree["bias"] = Declaration(shape, axes)
    return tree


def declare_attention(config) -> dict:
    """Return one layer's parameters of `attention_block`."""
    D, K, std = config.embed_dim, config.head_dim, config.init_std
    H, G = config.num_heads, config.num_kv_heads
    residual = std * _residual(config)
    tree = {
        "query": Declaration((D, H, K), ("embed", "heads", "head_dim"), ("embed",), std),
        "key": Declaration((D, G, K), ("embed", "kv_heads", "head_dim"), ("embed",), std),
        "value": Declaration((D, G, K), ("embed", "kv_heads", "head_dim"), ("embed",), std),
        "out": Declaration((H, K, D), ("heads", "head_dim", "embed"), ("heads", "head_dim"), residual),
    }
    if config.qkv_bias:
        tree["query_bias"] = Declaration((H, K), ("heads", "head_dim"))
        tree["key_bias"] = Declaration((G, K), ("kv_heads", "head_dim"))
        tree["value_bias"] = Declaration((G, K), ("kv_heads", "head_dim"))
    if config.out_bias:
        tree["out_bias"] = Declaration((D,), ("embed",))
    if config.sink_logit == "learned":
        tree["sink"] = Declaration((H,), ("heads",))
    if config.qk_norm:
        tree["query_norm"], tree["key_norm"] = _norm(config, "head_dim"), _norm(config, "head_dim")
    if config.norm_place == "sandwich":
        tree["out_norm"] = _norm(config)
    return tree


def declare_mlp(config) -> dict:
    """Return one layer's parameters of `mlp_block`."""
    D, F, std = config.embed_dim, config.mlp_dim, config.init_std
    residual = std * _residual(config)
    tree = {
        "in": Declaration((D, F), ("embed", "mlp"), ("embed",), std),
        "out": Declaration((F, D), ("mlp", "embed"), ("mlp",), residual),
    }
    if config.gated_mlp:
        tree["gate"] = Declaration((D, F), ("embed", "mlp"), ("embed",), std)
    if config.mlp_bias:
        tree["in_bias"] = Declaration((F,), ("mlp",))
        tree["out_bias"] = Declaration((D,), ("embed",))
        if config.gated_mlp:
            tree["gate_bias"] = Declaration((F,), ("mlp",))
    if config.norm_place == "sandwich":
        tree["out_norm"] = _norm(config)
    return tree


def _group_head(config) -> dict:
    D, std = config.embed_dim, config.init_std
    G, K = config.vocab_groups.num_groups, config.vocab_groups.slots
    tree = {
        "groups": Declaration((D, G), ("embed", "vocab"), ("embed",), std),
        "groups_bias": Declaration((G,), ("vocab",)),
    }
    if config.group_head == "own":
        if not config.tie_embeddings:
            tree["tokens"] = Declaration((config.vocab_size, D), ("vocab", "embed"), ("vocab",), std)
        return tree
    tree["slots"] = Declaration((D, K), ("embed", "vocab"), ("embed",), std)
    if config.group_head != "shared":
        width = {"hidden": (D, "embed"), "logits": (K, "vocab")}[config.group_head]
        shape, names = zip((G, "vocab_groups"), width, strict=True)
        tree["scale"] = Declaration(shape, names, mean=1.0)
        tree["shift"] = Declaration(shape, names)
    return tree


def _residual(config) -> float:
    return (2 * config.num_layers) ** -0.5


def is_declaration(x) -> bool:
    """Say whether a node of what `declare` returns is one parameter."""
    return isinstance(x, Declaration)


def leaves(declared: dict) -> list[Declaration]:
    """Return the `Declaration`s of a nested dict."""
    return jax.tree.leaves(declared, is_leaf=is_declaration)
