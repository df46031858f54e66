"""What parameters a transformer has: of each its shape, the names of its axes, its initialiser."""

from jaxllm.models.architecture import Declaration, declare, stacked
from jaxllm.models.config import LanguageModel, ModelConfig


@declare.register
def declare_transformer(config: ModelConfig) -> dict:
    """Return the declarations of a transformer; see `architecture.declare`."""
    V, D = config.known_vocab_size, config.embed_dim
    std = config.init_std
    tree = {
        "embed": {"tokens": Declaration((V, D), ("vocab", "embed"), ("vocab",), std)},
        "layers": stacked(
            config.num_layers,
            {
                "attn_norm": _norm(config),
                "attn": declare_attention(config),
                "mlp_norm": _norm(config),
                "mlp": declare_mlp(config),
            },
        ),
    }
    if config.norm_place != "post":
        tree["final_norm"] = _norm(config)
    if config.position == "learned":
        positions = Declaration((config.context_length, D), ("position", "embed"), ("position",), std)
        tree["embed"]["positions"] = positions
    return tree | declare_head(config)


def declare_head(config: LanguageModel) -> dict:
    """Return {"head": its parameters}, or nothing where it is the token table."""
    if config.vocab_groups is not None:
        return {"head": _group_head(config)}
    if config.tie_embeddings:
        return {}
    V, D = config.known_vocab_size, config.embed_dim
    return {"head": {"kernel": Declaration((D, V), ("embed", "vocab"), ("embed",), config.init_std)}}


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
