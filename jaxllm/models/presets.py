"""Models by their published names, and small ones for a CPU."""

import dataclasses

from jaxllm.errors import unknown
from jaxllm.models.config import ModelConfig

_NEO = dict(context_length=2048, qkv_bias=False, attention_scale=1.0, windows=(0, 256))
_LLAMA = dict(
    activation="silu",
    gated_mlp=True,
    norm="rmsnorm",
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    position="rotary",
)
_SMOLLM2 = dict(**_LLAMA, vocab_size=49152, context_length=8192)
# Small models read bytes until told otherwise; give vocab_size for another tokenizer.
_BYTES = dict(vocab_size=256)
_SMALL_LLAMA = dict(**_LLAMA, **_BYTES, context_length=256)


def _model(layers: int, width: int, heads: int, **rest) -> ModelConfig:
    return ModelConfig(num_layers=layers, embed_dim=width, num_heads=heads, **rest)


PRESETS: dict[str, ModelConfig] = {
    "gpt2": _model(12, 768, 12),
    "gpt2-medium": _model(24, 1024, 16),
    "gpt2-large": _model(36, 1280, 20),
    "gpt2-xl": _model(48, 1600, 25),
    "gpt-neo-125m": _model(12, 768, 12, **_NEO),
    "gpt-neo-1.3b": _model(24, 2048, 16, **_NEO),
    "gpt-neo-2.7b": _model(32, 2560, 20, **_NEO),
    "tinyllama-1.1b": _model(
        22,
        2048,
        32,
        num_kv_heads=4,
        mlp_dim=5632,
        tie_embeddings=False,
        vocab_size=32000,
        context_length=2048,
        **_LLAMA,
    ),
    "smollm2-135m": _model(30, 576, 9, num_kv_heads=3, mlp_dim=1536, rope_theta=1e5, **_SMOLLM2),
    "smollm2-360m": _model(32, 960, 15, num_kv_heads=5, mlp_dim=2560, rope_theta=1e5, **_SMOLLM2),
    "smollm2-1.7b": _model(24, 2048, 32, mlp_dim=8192, rope_theta=1.3e5, **_SMOLLM2),
    "llama-2-7b": _model(
        32,
        4096,
        32,
        mlp_dim=11008,
        tie_embeddings=False,
        vocab_size=32000,
        context_length=4096,
        **_LLAMA,
    ),
    "llama-2-70b": _model(
        80,
        8192,
        64,
        num_kv_heads=8,
        mlp_dim=28672,
        tie_embeddings=False,
        vocab_size=32000,
        context_length=4096,
        **_LLAMA,
    ),
    "gpt2-nano": _model(2, 64, 2, context_length=128, **_BYTES),
    "gpt2-micro": _model(4, 128, 4, context_length=256, **_BYTES),
    "gpt2-tiny": _model(4, 256, 4, context_length=256, **_BYTES),
    "gpt2-mini": _model(6, 384, 6, context_length=256, **_BYTES),
    "gpt-neo-nano": _model(2, 64, 2, **(_NEO | _BYTES | dict(context_length=128, windows=(0, 32)))),
    "llama-nano": _model(2, 64, 4, num_kv_heads=2, mlp_dim=172, **_SMALL_LLAMA),
    "llama-micro": _model(4, 128, 4, num_kv_heads=2, mlp_dim=344, **_SMALL_LLAMA),
    "llama-mini": _model(6, 384, 6, num_kv_heads=2, mlp_dim=1024, **_SMALL_LLAMA),
}


def get_preset(name: str, **overrides) -> ModelConfig:
    """Return the preset called `name`, with some fields replaced.

    A size that the preset derives from another (head_dim, num_kv_heads, mlp_dim) is derived again
    unless it is among the overrides.

    Raises:
      UserError: no such preset or field, or values that do not fit together.

    Examples:
      >>> get_preset("gpt2-medium").num_params
      354823168
      >>> get_preset("gpt2", embed_dim=256, num_heads=4).mlp_dim
      1024
      >>> get_preset("gpt2", heads=4)
      Traceback (most recent call last):
      ...
      jaxllm.errors.UserError: unknown model field 'heads'; did you mean 'num_heads'? Known: ...
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    preset = PRESETS[name]
    fields = [field.name for field in dataclasses.fields(preset)]
    for field in overrides:
        if field not in fields:
            raise unknown("model field", field, fields)
    again = dict.fromkeys(derived_fields(preset))
    return dataclasses.replace(preset, **(again | overrides))


def derived_fields(config: ModelConfig) -> list[str]:
    """Return the fields whose values are those that ModelConfig derives from others.

    Examples:
      >>> derived_fields(PRESETS["llama-nano"])
      ['head_dim', 'norm_bias']
    """
    derived = {
        "head_dim": config.embed_dim // config.num_heads,
        "num_kv_heads": config.num_heads,
        "mlp_dim": 4 * config.embed_dim,
        "norm_bias": config.norm == "layernorm",
    }
    return [field for field, value in derived.items() if getattr(config, field) == value]
