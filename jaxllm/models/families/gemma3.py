"""Gemma 3, its text model: gains stored less 1, norms around each block, five windowed layers in six."""

from typing import Any

from jaxllm.config import Positive, Size, check, fits
from jaxllm.errors import UserError, brief
from jaxllm.models.config import Layers
from jaxllm.models.families.record import (
    BYTES,
    THEIR_ACTIVATIONS,
    Family,
    Gguf,
    Tensor,
    model,
    read_activation,
    shortest_pattern,
)  # fmt: skip
from jaxllm.models.families.rope import check_rope, read_rope, write_rope_scaling

_LAYER = "model.layers.{layer}."
_TENSORS = {
    "embed/tokens": Tensor("model.embed_tokens.weight"),
    "layers/attn_norm/scale": Tensor(_LAYER + "input_layernorm.weight", offset=1),
    "layers/attn/query": Tensor(_LAYER + "self_attn.q_proj.weight", True),
    "layers/attn/key": Tensor(_LAYER + "self_attn.k_proj.weight", True),
    "layers/attn/value": Tensor(_LAYER + "self_attn.v_proj.weight", True),
    "layers/attn/query_bias": Tensor(_LAYER + "self_attn.q_proj.bias"),
    "layers/attn/key_bias": Tensor(_LAYER + "self_attn.k_proj.bias"),
    "layers/attn/value_bias": Tensor(_LAYER + "self_attn.v_proj.bias"),
    "layers/attn/query_norm/scale": Tensor(_LAYER + "self_attn.q_norm.weight", offset=1),
    "layers/attn/key_norm/scale": Tensor(_LAYER + "self_attn.k_norm.weight", offset=1),
    "layers/attn/out": Tensor(_LAYER + "self_attn.o_proj.weight", True),
    "layers/attn/out_bias": Tensor(_LAYER + "self_attn.o_proj.bias"),
    "layers/attn/out_norm/scale": Tensor(_LAYER + "post_attention_layernorm.weight", offset=1),
    "layers/mlp_norm/scale": Tensor(_LAYER + "pre_feedforward_layernorm.weight", offset=1),
    "layers/mlp/in": Tensor(_LAYER + "mlp.up_proj.weight", True),
    "layers/mlp/gate": Tensor(_LAYER + "mlp.gate_proj.weight", True),
    "layers/mlp/out": Tensor(_LAYER + "mlp.down_proj.weight", True),
    "layers/mlp/out_norm/scale": Tensor(_LAYER + "post_feedforward_layernorm.weight", offset=1),
    "final_norm/scale": Tensor("model.norm.weight", offset=1),
    "head/kernel": Tensor("lm_head.weight", True),
}
_WINDOWED, _WHOLE = "sliding_attention", "full_attention"


def _read(theirs):
    kinds = tuple(_kinds(theirs))
    scalar = theirs.get("query_pre_attn_scalar", 256)
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"],
        num_layers=theirs["num_hidden_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_attention_heads"],
        num_kv_heads=theirs["num_key_value_heads"],
        head_dim=theirs["head_dim"],
        mlp_dim=theirs["intermediate_size"],
        activation=read_activation(theirs, "hidden_activation"),
        gated_mlp=True,
        norm="rmsnorm",
        norm_eps=theirs["rms_norm_eps"],
        norm_place="sandwich",
        qk_norm=True,
        qkv_bias=theirs.get("attention_bias", False),
        out_bias=theirs.get("attention_bias", False),
        mlp_bias=False,
        position="rotary",
        windowed_rope_theta=float(_rope(theirs, _WINDOWED)["rope_theta"]),
        **read_rope(_rope(theirs, _WHOLE)),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        scale_embeddings=True,
        attention_scale=None if scalar == theirs["head_dim"] else scalar**-0.5,
        windows=shortest_pattern(tuple(theirs["sliding_window"] * (kind == _WINDOWED) for kind in kinds)),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _write(config):
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = round(scale**-2, 6)
    windows = config.windows * (config.num_layers // len(config.windows))
    windowed_theta = config.windowed_rope_theta or config.rope_theta
    return dict(
        model_type="gemma3_text",
        architectures=["Gemma3ForCausalLM"],
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_dim,
        hidden_activation=THEIR_ACTIVATIONS[config.activation],
        rms_norm_eps=config.norm_eps,
        attention_bias=config.qkv_bias,
        query_pre_attn_scalar=int(scalar) if scalar == int(scalar) else scalar,
        sliding_window=max(config.windows) or 4096,
        layer_types=[_WINDOWED if window else _WHOLE for window in windows],
        rope_theta=config.rope_theta,
        rope_local_base_freq=windowed_theta,
        **write_rope_scaling(config),
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


def _kinds(theirs) -> list[str]:
    """Return the kind of each layer's attention."""
    every = theirs.get("sliding_window_pattern", theirs.get("_sliding_window_pattern", 6))
    places = range(1, theirs["num_hidden_layers"] + 1)
    return theirs.get("layer_types", [_WINDOWED if place % every else _WHOLE for place in places])


def _rope(theirs, kind: str) -> dict[str, Any]:
    """Return one kind of layers' rotary fields: transformers 5 nests them, older files name them apart."""
    nested = theirs.get("rope_parameters") or {}
    if kind == _WINDOWED:
        return {"rope_theta": theirs.get("rope_local_base_freq", 1e4), **nested.get(kind, {})}
    apart = {"rope_theta": theirs.get("rope_theta", 1e6), **theirs.get("rope_scaling", {})}
    whole = nested.get(kind, apart)
    return {"rope_theta": whole.get("rope_theta", 1e6), "rope_parameters": whole}


def _check(theirs: Any, source: str) -> None:
    if "rope_parameters" in theirs:
        nested = theirs["rope_parameters"]
        if not isinstance(nested, dict) or not all(isinstance(one, dict) for one in nested.values()):
            raise UserError(
                f"{source}: rope_parameters is {brief(nested)}; expected those of {_WHOLE} and {_WINDOWED}"
            )
    elif not isinstance(theirs.get("rope_scaling", {}), dict):
        raise UserError(f"{source}: rope_scaling is {brief(theirs['rope_scaling'])}, which is not supported")
    check_rope(_rope(theirs, _WHOLE), source)
    windowed = _rope(theirs, _WINDOWED)
    check(f"{source}: rope_theta of {_WINDOWED}", windowed["rope_theta"], Positive)
    if windowed.get("rope_type", "default") != "default":
        raise UserError(f"{source}: rope scaling of {_WINDOWED} is {brief(windowed)}, which is not supported")
    types, layers = theirs.get("layer_types"), theirs["num_hidden_layers"]
    good = types is None or isinstance(types, list) and len(types) == layers
    if not good or not all(kind in (_WINDOWED, _WHOLE) for kind in types or ()):
        raise UserError(
            f"{source}: layer_types is {brief(types)}; expected {_WINDOWED} or {_WHOLE} for each of {layers} "
            "layers"
        )
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if theirs.get(name):
            raise UserError(f"{source}: {name} is {brief(theirs[name])}, which is not supported")
    for name in ("sliding_window_pattern", "_sliding_window_pattern"):
        if name in theirs and not fits(theirs[name], Size):
            raise UserError(f"{source}: {name} is {brief(theirs[name])}; it must be a whole number above 0")


def _read_gguf(get, tensors):
    # The file does not say what scores are divided by: llama.cpp knows the 27B, which differs, by its layers.
    largest = str(get("block_count")) == "62"
    return dict(
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=get("attention.sliding_window"),
        rope_local_base_freq=get("rope.freq_base_swa", 1e4),
        query_pre_attn_scalar=168 if largest else get("attention.key_length"),
    )


_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = dict(
    activation="gelu_tanh", gated_mlp=True, norm="rmsnorm", norm_eps=1e-6, norm_place="sandwich",
    qk_norm=True, qkv_bias=False, out_bias=False, mlp_bias=False, position="rotary", scale_embeddings=True,
    windowed_rope_theta=1e4,
)  # fmt: skip
_LARGE = dict(
    **_GEMMA, vocab_size=262144, context_length=32768, num_kv_heads=1, head_dim=256, rope_theta=1e6,
)  # fmt: skip


def _windows(layers: int) -> tuple[int, ...]:
    return shortest_pattern(tuple(0 if place % 6 == 0 else 512 for place in range(1, layers + 1)))


GEMMA3 = Family(
    name="gemma3_text",
    title="Gemma 3",
    tensors=_TENSORS,
    required=dict(
        vocab_size=Size, max_position_embeddings=Size, num_hidden_layers=Layers, hidden_size=Size,
        num_attention_heads=Size, num_key_value_heads=Size, head_dim=Size, intermediate_size=Size,
        hidden_activation=str, rms_norm_eps=Positive, sliding_window=Size,
    ),
    optional=dict(
        attention_bias=bool, query_pre_attn_scalar=Positive, rope_theta=Positive,
        rope_local_base_freq=Positive, tie_word_embeddings=bool, initializer_range=Positive,
    ),
    read=_read,
    write=_write,
    check=_check,
    presets={
        "gemma-3-270m": model(18, 640, 4, mlp_dim=2048, windows=_windows(18), **_LARGE),
        "gemma-3-1b": model(26, 1152, 4, mlp_dim=6912, windows=_windows(26), **_LARGE),
        "gemma-nano": model(
            2, 64, 4, num_kv_heads=1, head_dim=32, mlp_dim=172, windows=(32, 0), context_length=256,
            **_GEMMA, **BYTES,
        ),
    },
    gguf=Gguf(
        "gemma3",
        {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        | {f"blk.{{layer}}.{theirs}": _LAYER + name for theirs, name in _GGUF_LAYER.items()},
        _read_gguf,
    ),
)  # fmt: skip
