"""A Llama-family model out of a GGUF file: config, tensors by Hugging Face name, tokenizer."""

from typing import Any

import numpy as np

from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.models.config import ModelConfig
from jaxllm.pretrained.config_file import checked_config
from jaxllm.pretrained.gguf_file import GgufFile
from jaxllm.pretrained.tensors import StoredTensor, Tensors

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
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
_ROPE_FACTORS = "rope_freqs.weight"


def gguf_config(file: GgufFile, **overrides) -> ModelConfig:
    """Return the config of the model in the file; overrides set dtype and param_dtype.

    Raises:
      UserError: the architecture is not "llama", or a value is missing or not supported.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != "llama":
        raise UserError(f"{file.path}: {unknown('architecture', bare(architecture), ['llama'])}")
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"'{file.path}' is one of {brief(parts)} parts of a model; join them first, with llama.cpp's "
            "llama-gguf-split --merge"
        )
    tokens = file.tensors.get("token_embd.weight")
    if tokens is None or len(tokens.shape) != 2:
        raise UserError(f"'{file.path}' has no tensor 'token_embd.weight' of two axes")
    heads = _get(file, "attention.head_count")
    theirs = dict(
        model_type="llama",
        vocab_size=tokens.shape[0],
        max_position_embeddings=_get(file, "context_length"),
        num_hidden_layers=_get(file, "block_count"),
        hidden_size=_get(file, "embedding_length"),
        intermediate_size=_get(file, "feed_forward_length"),
        num_attention_heads=heads,
        num_key_value_heads=_get(file, "attention.head_count_kv", heads),
        head_dim=_get(file, "attention.key_length", None),
        hidden_act="silu",
        rms_norm_eps=_short(_get(file, "attention.layer_norm_rms_epsilon")),
        rope_theta=_short(_get(file, "rope.freq_base", 10000.0)),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    config, _ = checked_config(theirs, str(file.path), **overrides)
    for name, supported in {
        "rope.dimension_count": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.scaling.type": "none",
        "expert_count": 0,
    }.items():
        value = _get(file, name, supported)
        if not isinstance(value, type(supported)) or value != supported:
            raise UserError(
                f"{file.path}: llama.{name} is {brief(value)}, which is not supported, only {supported}"
            )
    return config


def gguf_tensors(file: GgufFile, config: ModelConfig) -> Tensors:
    """Return the file's tensors under Hugging Face names, q and k with halves, not pairs, rotated."""
    named = {}
    for name, tensor in file.tensors.items():
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
        for part, count in heads.items():
            if f".{part}." in name and tensor.shape and tensor.shape[0] == count * config.head_dim:
                tensor = _halves(tensor, count)
        theirs = _their_name(name)
        if theirs in named:
            raise UserError(f"'{file.path}' holds '{name}' under two names: the file is damaged")
        if name == _ROPE_FACTORS and np.all(tensor.read() == 1):
            continue  # the rotation is not scaled
        named[theirs] = tensor
    return Tensors(named)


def _their_name(name: str) -> str:
    base, _, kind = name.rpartition(".")
    if base in _NAMES:
        return f"{_NAMES[base]}.{kind}"
    parts = base.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
    return name


def _halves(tensor: StoredTensor, heads: int) -> StoredTensor:
    """Undo llama.cpp's order: it rotates rows (2i, 2i + 1) of a head, we rotate (i, i + K/2)."""

    def read() -> np.ndarray:
        pairs = tensor.read().reshape(heads, -1, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)

    return tensor._replace(read=read)


_NEEDED = object()


def _get(file: GgufFile, name: str, default: Any = _NEEDED) -> Any:
    value = file.metadata.get(f"llama.{name}", default)
    if value is _NEEDED:
        raise UserError(f"'{file.path}' has no value 'llama.{name}' in its header")
    return value


def _short(value: Any) -> Any:
    # Stored as float32: 1e-5 comes back as 9.99999975e-06. Seven digits give what was meant.
    return float(f"{value:.7g}") if isinstance(value, float) else value
