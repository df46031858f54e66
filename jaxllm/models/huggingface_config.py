"""config.json of Hugging Face models to ModelConfig and back."""

from collections.abc import Mapping
from typing import Any

from jaxllm.errors import UserError, unknown
from jaxllm.models.config import ModelConfig

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "silu": "silu", "relu": "relu"}


def config_from_huggingface(theirs: Mapping[str, Any], **overrides) -> ModelConfig:
    """Return the ModelConfig of a config.json; overrides add what it does not say.

    Raises:
      UserError: a model_type, activation or rope scaling that is not supported.

    Examples:
      >>> config_from_huggingface({"model_type": "gpt2", "n_layer": 24, "n_embd": 1024,
      ...     "n_head": 16, "n_positions": 1024, "vocab_size": 50257,
      ...     "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}).num_params
      354823168
    """
    readers = {"gpt2": _from_gpt2, "gpt_neo": _from_gpt_neo, "llama": _from_llama}
    family = theirs.get("model_type")
    if family not in readers:
        raise unknown("model_type", str(family), readers)
    return ModelConfig(**(readers[family](theirs) | overrides))


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a config that GPT-2, GPT-Neo or Llama can express.

    Raises:
      UserError: none of the three families can.
    """
    if config.vocab_groups is not None:
        raise UserError(
            "no Hugging Face family can hold a head of groups, whose log-probabilities are not linear in the "
            "hidden states; fit a dense head to it with vocabulary.to_dense_head and save that"
        )
    writers = {"gpt2": _to_gpt2, "gpt_neo": _to_gpt_neo, "llama": _to_llama}
    for write in writers.values():
        theirs = write(config)
        if _same_model(config, config_from_huggingface(theirs)):
            return theirs
    raise UserError(
        "no Hugging Face family can hold this model: GPT-2, GPT-Neo and Llama have no such mix of "
        f"norm={config.norm}, position={config.position}, windows={config.windows}, "
        f"sink_logit={config.sink_logit} and biases"
    )


def _same_model(ours: ModelConfig, again: ModelConfig) -> bool:
    # How it is computed and initialised is ours to choose; what it computes is not.
    ignored = (
        "dtype",
        "param_dtype",
        "remat",
        "attention_implementation",
        "init_std",
        "windows",
        "attention_scale",
        "group_head",
    )
    if ours.position != "rotary":
        ignored += ("rope_theta",)
    a, b = vars(ours), vars(again)
    scales = [c.attention_scale or c.head_dim**-0.5 for c in (ours, again)]
    windows = [c.windows * (c.num_layers // len(c.windows)) for c in (ours, again)]
    rest = all(a[name] == b[name] for name in a if name not in ignored)
    return rest and windows[0] == windows[1] and abs(scales[0] - scales[1]) < 1e-6


def _activation(theirs: Mapping[str, Any], field: str) -> str:
    name = theirs.get(field, "gelu_new")
    if name not in _ACTIVATIONS:
        raise unknown("activation", str(name), _ACTIVATIONS)
    return _ACTIVATIONS[name]


def _from_gpt2(theirs):
    if theirs.get("scale_attn_by_inverse_layer_idx"):
        raise UserError("scale_attn_by_inverse_layer_idx is not supported")
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["n_positions"],
        num_layers=theirs["n_layer"],
        embed_dim=theirs["n_embd"],
        num_heads=theirs["n_head"],
        mlp_dim=theirs.get("n_inner"),
        activation=_activation(theirs, "activation_function"),
        norm_eps=theirs["layer_norm_epsilon"],
        attention_scale=None if theirs.get("scale_attn_weights", True) else 1.0,
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_gpt2(config):
    return dict(
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_layer=config.num_layers,
        n_embd=config.embed_dim,
        n_head=config.num_heads,
        n_inner=config.mlp_dim,
        activation_function=_THEIR_ACTIVATIONS[config.activation],
        layer_norm_epsilon=config.norm_eps,
        scale_attn_weights=config.attention_scale != 1.0,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


def _from_gpt_neo(theirs):
    kinds = [kind for pattern, count in theirs["attention_types"] for kind in pattern * count]
    windows = tuple(theirs["window_size"] if kind == "local" else 0 for kind in kinds)
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"],
        num_layers=theirs["num_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_heads"],
        mlp_dim=theirs.get("intermediate_size"),
        activation=_activation(theirs, "activation_function"),
        norm_eps=theirs["layer_norm_epsilon"],
        qkv_bias=False,
        attention_scale=1.0,
        windows=_shortest_pattern(windows),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_gpt_neo(config):
    kinds = ["local" if window else "global" for window in config.windows]
    return dict(
        model_type="gpt_neo",
        architectures=["GPTNeoForCausalLM"],
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        num_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        activation_function=_THEIR_ACTIVATIONS[config.activation],
        layer_norm_epsilon=config.norm_eps,
        attention_types=[[kinds, config.num_layers // len(kinds)]],
        window_size=max(config.windows) or 256,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


def _from_llama(theirs):
    # transformers 5 nests rope_theta in rope_parameters; older files keep it at the top.
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope scaling '{kind}' is not supported, only the default")
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"],
        num_layers=theirs["num_hidden_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_attention_heads"],
        num_kv_heads=theirs.get("num_key_value_heads"),
        head_dim=theirs.get("head_dim"),
        mlp_dim=theirs["intermediate_size"],
        activation=_activation(theirs, "hidden_act"),
        gated_mlp=True,
        norm="rmsnorm",
        norm_eps=theirs["rms_norm_eps"],
        qkv_bias=theirs.get("attention_bias", False),
        out_bias=theirs.get("attention_bias", False),
        mlp_bias=theirs.get("mlp_bias", False),
        position="rotary",
        rope_theta=float(rope.get("rope_theta", theirs.get("rope_theta", 10000.0))),
        tie_embeddings=theirs.get("tie_word_embeddings", False),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_llama(config):
    return dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_dim,
        hidden_act=_THEIR_ACTIVATIONS[config.activation],
        rms_norm_eps=config.norm_eps,
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


def _shortest_pattern(windows: tuple[int, ...]) -> tuple[int, ...]:
    for size in range(1, len(windows) + 1):
        if len(windows) % size == 0 and windows[:size] * (len(windows) // size) == windows:
            return windows[:size]
    return windows
