"""Llama, and what is built like it: TinyLlama, SmolLM2."""

from jaxllm.config import Positive, Size
from jaxllm.models.config import Layers
from jaxllm.models.families.buffers import rotary_frequencies
from jaxllm.models.families.record import (
    BYTES,
    THEIR_ACTIVATIONS,
    Family,
    Gguf,
    Tensor,
    model,
    read_activation,
)  # fmt: skip
from jaxllm.models.families.rope import check_rope, read_rope, write_rope_scaling
from jaxllm.models.rotary import RopeScaling

_TENSORS = {
    "embed/tokens": Tensor("model.embed_tokens.weight"),
    "layers/attn_norm/scale": Tensor("model.layers.{layer}.input_layernorm.weight"),
    "layers/attn/query": Tensor("model.layers.{layer}.self_attn.q_proj.weight", True),
    "layers/attn/key": Tensor("model.layers.{layer}.self_attn.k_proj.weight", True),
    "layers/attn/value": Tensor("model.layers.{layer}.self_attn.v_proj.weight", True),
    "layers/attn/query_bias": Tensor("model.layers.{layer}.self_attn.q_proj.bias"),
    "layers/attn/key_bias": Tensor("model.layers.{layer}.self_attn.k_proj.bias"),
    "layers/attn/value_bias": Tensor("model.layers.{layer}.self_attn.v_proj.bias"),
    "layers/attn/out": Tensor("model.layers.{layer}.self_attn.o_proj.weight", True),
    "layers/attn/out_bias": Tensor("model.layers.{layer}.self_attn.o_proj.bias"),
    "layers/mlp_norm/scale": Tensor("model.layers.{layer}.post_attention_layernorm.weight"),
    "layers/mlp/in": Tensor("model.layers.{layer}.mlp.up_proj.weight", True),
    "layers/mlp/in_bias": Tensor("model.layers.{layer}.mlp.up_proj.bias"),
    "layers/mlp/gate": Tensor("model.layers.{layer}.mlp.gate_proj.weight", True),
    "layers/mlp/gate_bias": Tensor("model.layers.{layer}.mlp.gate_proj.bias"),
    "layers/mlp/out": Tensor("model.layers.{layer}.mlp.down_proj.weight", True),
    "layers/mlp/out_bias": Tensor("model.layers.{layer}.mlp.down_proj.bias"),
    "final_norm/scale": Tensor("model.norm.weight"),
    "head/kernel": Tensor("lm_head.weight", output_first=True),
}


def _read(theirs):
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"],
        num_layers=theirs["num_hidden_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_attention_heads"],
        num_kv_heads=theirs.get("num_key_value_heads"),
        head_dim=theirs.get("head_dim"),
        mlp_dim=theirs["intermediate_size"],
        activation=read_activation(theirs, "hidden_act"),
        gated_mlp=True,
        norm="rmsnorm",
        norm_eps=theirs["rms_norm_eps"],
        qkv_bias=theirs.get("attention_bias", False),
        out_bias=theirs.get("attention_bias", False),
        mlp_bias=theirs.get("mlp_bias", False),
        position="rotary",
        **read_rope(theirs),
        tie_embeddings=theirs.get("tie_word_embeddings", False),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _write(config):
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
        hidden_act=THEIR_ACTIVATIONS[config.activation],
        rms_norm_eps=config.norm_eps,
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        rope_theta=config.rope_theta,
        **write_rope_scaling(config),
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
    )


_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA = dict(
    activation="silu", gated_mlp=True, norm="rmsnorm", qkv_bias=False, out_bias=False, mlp_bias=False,
    position="rotary",
)  # fmt: skip
_LLAMA2 = dict(**_LLAMA, tie_embeddings=False, vocab_size=32000)
_LLAMA3 = dict(**_LLAMA, rope_theta=5e5, vocab_size=128256, context_length=131072)
_LLAMA31 = dict(**_LLAMA3, rope_scaling=RopeScaling("llama3", factor=8.0), tie_embeddings=False)
_LLAMA32 = dict(**_LLAMA3, rope_scaling=RopeScaling("llama3", factor=32.0))
_SMOLLM2 = dict(**_LLAMA, vocab_size=49152, context_length=8192)
_SMALL = dict(**_LLAMA, **BYTES, context_length=256)

LLAMA = Family(
    name="llama",
    title="Llama",
    tensors=_TENSORS,
    required=dict(
        vocab_size=Size, max_position_embeddings=Size, num_hidden_layers=Layers, hidden_size=Size,
        num_attention_heads=Size, intermediate_size=Size, hidden_act=str, rms_norm_eps=Positive,
    ),
    optional=dict(
        num_key_value_heads=Size, head_dim=Size, attention_bias=bool, mlp_bias=bool,
        rope_theta=Positive, tie_word_embeddings=bool, initializer_range=Positive,
    ),
    read=_read,
    write=_write,
    check=check_rope,
    buffers={"rotary_emb.inv_freq": rotary_frequencies},
    gguf=Gguf(
        "llama",
        {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        | {"blk.{layer}." + theirs: "model.layers.{layer}." + name for theirs, name in _GGUF_LAYER.items()},
        lambda get, tensors: dict(hidden_act="silu", attention_bias="blk.0.attn_q.bias" in tensors),
        rotates_neighbours=True,
    ),
    presets={
        "tinyllama-1.1b": model(22, 2048, 32, num_kv_heads=4, mlp_dim=5632, context_length=2048, **_LLAMA2),
        "smollm2-135m": model(30, 576, 9, num_kv_heads=3, mlp_dim=1536, rope_theta=1e5, **_SMOLLM2),
        "smollm2-360m": model(32, 960, 15, num_kv_heads=5, mlp_dim=2560, rope_theta=1e5, **_SMOLLM2),
        "smollm2-1.7b": model(24, 2048, 32, mlp_dim=8192, rope_theta=1.3e5, **_SMOLLM2),
        "llama-2-7b": model(32, 4096, 32, mlp_dim=11008, context_length=4096, **_LLAMA2),
        "llama-2-70b": model(80, 8192, 64, num_kv_heads=8, mlp_dim=28672, context_length=4096, **_LLAMA2),
        "llama-3.1-8b": model(32, 4096, 32, num_kv_heads=8, mlp_dim=14336, **_LLAMA31),
        "llama-3.2-1b": model(16, 2048, 32, num_kv_heads=8, mlp_dim=8192, **_LLAMA32),
        "llama-3.2-3b": model(28, 3072, 24, num_kv_heads=8, mlp_dim=8192, **_LLAMA32),
        "llama-nano": model(2, 64, 4, num_kv_heads=2, mlp_dim=172, **_SMALL),
        "llama-micro": model(4, 128, 4, num_kv_heads=2, mlp_dim=344, **_SMALL),
        "llama-mini": model(6, 384, 6, num_kv_heads=2, mlp_dim=1024, **_SMALL),
    },
)  # fmt: skip
