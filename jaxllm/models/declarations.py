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
    if config.num_token_types:
        shape, axes = (config.num_token_types, D), ("token_type", "embed")
        tree["embed"]["token_types"] = Declaration(shape, axes, ("token_type",), std)
    if config.embed_norm:
        tree["embed"]["norm"] = _norm(config)
    if config.position == "disentangled":
        shape, axes = (2 * config.disentangled.span, D), ("relative_position", "embed")
        tree["embed"]["relative"] = Declaration(shape, axes, ("relative_position",), std)
        if config.disentangled.norm:
            tree["embed"]["relative_norm"] = _norm(config)
    return tree | declare_head(config)


def declare_head(config: LanguageModel) -> dict:
    """Return {"head": its parameters}, or nothing where it is the token table."""
    if config.vocab_groups is not None:
        return {"head": _group_head(config)}
    head = {} if config.head == "tokens" else _HEADS[config.head](config)
    if not config.tie_embeddings and not config.labels:
        V, D = config.known_vocab_size, config.embed_dim
        head["kernel"] = Declaration((D, V), ("embed", "vocab"), ("embed",), config.init_std)
    return {"head": head} if head else {}


def _norm(config, axis: str = "embed") -> dict:
    shape, axes = (config.head_dim if axis == "head_dim" else config.embed_dim,), (axis,)
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
    if config.position == "disentangled" and not config.disentangled.shared:
        for term, name in (("c2p", "position_key"), ("p2c", "position_query")):
            if term in config.disentangled.terms:
                tree[name] = tree["query"]
                if config.qkv_bias:
                    tree[name + "_bias"] = tree["query_bias"]
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


def _masked_head(config) -> dict:
    D, std = config.embed_dim, config.init_std
    return {
        "transform": Declaration((D, D), ("embed", "transformed"), ("embed",), std),
        "transform_bias": Declaration((D,), ("transformed",)),
        "norm": _norm(config, "transformed"),
        "bias": Declaration((config.known_vocab_size,), ("vocab",)),
    }


def _token_labels(config) -> dict:
    D, C = config.embed_dim, len(config.labels)
    return {
        "token_labels": Declaration((D, C), ("embed", "labels"), ("embed",), config.init_std),
        "token_labels_bias": Declaration((C,), ("labels",)),
    }


def _text_labels(config) -> dict:
    D, C, std = config.embed_dim, len(config.labels), config.init_std
    return {
        "pooler": Declaration((D, D), ("embed", "pooled"), ("embed",), std),
        "pooler_bias": Declaration((D,), ("pooled",)),
        "text_labels": Declaration((D, C), ("pooled", "labels"), ("pooled",), std),
        "text_labels_bias": Declaration((C,), ("labels",)),
    }


_HEADS = {"masked": _masked_head, "token_labels": _token_labels, "text_labels": _text_labels}


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
