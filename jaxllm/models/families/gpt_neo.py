"""GPT-Neo: GPT-2 with windows in every other layer, unscaled scores and no biases of query, key and value."""

from typing import Any

from jaxllm.config import Positive, Size
from jaxllm.errors import UserError, brief
from jaxllm.models.config import Layers
from jaxllm.models.families import gpt2
from jaxllm.models.families.buffers import causal_mask, mask_fill
from jaxllm.models.families.record import (
    BYTES,
    THEIR_ACTIVATIONS,
    Family,
    Tensor,
    model,
    read_activation,
    shortest_pattern,
)  # fmt: skip

_ATTENTION = "transformer.h.{layer}.attn.attention."
_TENSORS = gpt2.TENSORS | {
    "layers/attn/query": Tensor(_ATTENTION + "q_proj.weight", output_first=True),
    "layers/attn/key": Tensor(_ATTENTION + "k_proj.weight", output_first=True),
    "layers/attn/value": Tensor(_ATTENTION + "v_proj.weight", output_first=True),
    "layers/attn/out": Tensor(_ATTENTION + "out_proj.weight", output_first=True),
    "layers/attn/out_bias": Tensor(_ATTENTION + "out_proj.bias"),
    "layers/mlp/in": Tensor("transformer.h.{layer}.mlp.c_fc.weight", output_first=True),
    "layers/mlp/out": Tensor("transformer.h.{layer}.mlp.c_proj.weight", output_first=True),
}


def _read(theirs):
    kinds = [kind for pattern, count in theirs["attention_types"] for kind in pattern * count]
    windows = tuple(theirs["window_size"] if kind == "local" else 0 for kind in kinds)
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"],
        num_layers=theirs["num_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_heads"],
        mlp_dim=theirs.get("intermediate_size"),
        activation=read_activation(theirs, "activation_function"),
        norm_eps=theirs["layer_norm_epsilon"],
        qkv_bias=False,
        attention_scale=1.0,
        windows=shortest_pattern(windows),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _write(config):
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
        activation_function=THEIR_ACTIVATIONS[config.activation],
        layer_norm_epsilon=config.norm_eps,
        attention_types=[[kinds, config.num_layers // len(kinds)]],
        window_size=max(config.windows) or 256,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


def _check_attention_types(theirs: Any, source: str) -> None:
    types, layers = theirs.get("attention_types"), theirs["num_layers"]
    try:
        count = 0
        for kinds, times in types:
            if not set(kinds) <= {"global", "local"} or type(times) is not int or times < 1:
                raise ValueError
            count += len(kinds) * times
    except (TypeError, ValueError):
        count = None
    if count != layers:
        raise UserError(
            f"{source}: attention_types is {brief(types)}; expected pairs such as [['global', 'local'], 6] "
            f"that make {layers} layers"
        )


_NEO = dict(context_length=2048, qkv_bias=False, attention_scale=1.0, windows=(0, 256))

GPT_NEO = Family(
    name="gpt_neo",
    title="GPT-Neo",
    tensors=_TENSORS,
    required=dict(
        vocab_size=Size, max_position_embeddings=Size, num_layers=Layers, hidden_size=Size,
        num_heads=Size, activation_function=str, layer_norm_epsilon=Positive, window_size=Size,
    ),
    optional=dict(intermediate_size=Size, tie_word_embeddings=bool, initializer_range=Positive),
    read=_read,
    write=_write,
    check=_check_attention_types,
    buffers={".attn.attention.bias": causal_mask, ".attn.attention.masked_bias": mask_fill},
    presets={
        "gpt-neo-125m": model(12, 768, 12, **_NEO),
        "gpt-neo-1.3b": model(24, 2048, 16, **_NEO),
        "gpt-neo-2.7b": model(32, 2560, 20, **_NEO),
        "gpt-neo-nano": model(2, 64, 2, **(_NEO | BYTES | dict(context_length=128, windows=(0, 32)))),
    },
)  # fmt: skip
