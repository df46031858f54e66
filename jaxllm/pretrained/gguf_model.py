"""A model out of a GGUF file: config, tensors by Hugging Face name."""

import re
from typing import Any

import numpy as np

from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.models.config import ModelConfig
from jaxllm.models.families import FAMILIES, Family
from jaxllm.pretrained.config_file import checked_config
from jaxllm.pretrained.gguf_file import GgufFile
from jaxllm.pretrained.tensors import StoredTensor, Tensors

_FAMILIES = {family.gguf.architecture: family for family in FAMILIES.values() if family.gguf is not None}
_ROPE_FACTORS = "rope_freqs.weight"


def gguf_config(file: GgufFile, **overrides) -> tuple[ModelConfig, str]:
    """Return (ModelConfig, family) of the model in the file; overrides set dtype and param_dtype.

    Raises:
      UserError: the architecture is of no family, or a value is missing or not supported.
    """
    family = _family(file)
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"'{file.path}' is one of {brief(parts)} parts of a model; join them first, with llama.cpp's "
            "llama-gguf-split --merge"
        )
    tokens = file.tensors.get("token_embd.weight")
    if tokens is None or len(tokens.shape) != 2:
        raise UserError(f"'{file.path}' has no tensor 'token_embd.weight' of two axes")

    def get(name: str, *default: Any) -> Any:
        return _get(file, name, *default)

    heads = get("attention.head_count")
    theirs = dict(
        model_type=family.name,
        vocab_size=tokens.shape[0],
        max_position_embeddings=get("context_length"),
        num_hidden_layers=get("block_count"),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", None),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base", 10000.0),
        tie_word_embeddings="output.weight" not in file.tensors,
        **family.gguf.read(get, file.tensors),
    )
    if str(get("rope.scaling.type", "none")) == "linear":
        theirs["rope_scaling"] = {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    config, _ = checked_config(theirs, str(file.path), **overrides)
    for name, *supported in (
        ("rope.dimension_count", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.scaling.type", "none", "linear"),
        ("expert_count", 0),
    ):
        value = get(name, supported[0])
        if not isinstance(value, type(supported[0])) or value not in supported:
            raise UserError(
                f"{file.path}: {family.gguf.architecture}.{name} is {brief(value)}, which is not supported, "
                f"only {' and '.join(map(str, supported))}"
            )
    return config, family.name


def gguf_tensors(file: GgufFile, config: ModelConfig) -> Tensors:
    """Return the file's tensors as a Hugging Face folder has them: halves rotated, gains less 1."""
    family, named = _family(file), {}
    offsets = {tensor.name: tensor.offset for tensor in family.tensors.values()}
    for name, tensor in file.tensors.items():
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
        for part, count in heads.items() if family.gguf.rotates_neighbours else ():
            if f".{part}." in name and tensor.shape and tensor.shape[0] == count * config.head_dim:
                tensor = _halves(tensor, count)
        theirs = _their_name(family, name)
        if theirs in named:
            raise UserError(f"'{file.path}' holds '{name}' under two names: the file is damaged")
        if name == _ROPE_FACTORS and np.all(tensor.read() == 1):
            continue  # the rotation is not scaled
        offset = offsets.get(re.sub(r"\.\d+\.", ".{layer}.", theirs, count=1), 0)
        named[theirs] = _without(tensor, offset) if offset else tensor
    return Tensors(named)


def _family(file: GgufFile) -> Family:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise UserError(f"{file.path}: {unknown('architecture', bare(architecture), _FAMILIES)}")
    return _FAMILIES[architecture]


def _their_name(family: Family, name: str) -> str:
    base, _, kind = name.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", base)
    theirs = family.gguf.tensors.get(re.sub(r"^blk\.\d+\.", "blk.{layer}.", base))
    return f"{theirs.format(layer=layer and layer[1])}.{kind}" if theirs else name


def _without(tensor: StoredTensor, offset: float) -> StoredTensor:
    """Take off again what llama.cpp's converter added; in float64, which loses nothing."""
    return tensor._replace(read=lambda: tensor.read().astype(np.float64) - offset)


def _halves(tensor: StoredTensor, heads: int) -> StoredTensor:
    """Undo llama.cpp's order: it rotates rows (2i, 2i + 1) of a head, we rotate (i, i + K/2)."""

    def read() -> np.ndarray:
        pairs = tensor.read().reshape(heads, -1, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)

    return tensor._replace(read=read)


def _get(file: GgufFile, name: str, *default: Any) -> Any:
    key = f"{file.metadata['general.architecture']}.{name}"
    if key not in file.metadata and not default:
        raise UserError(f"'{file.path}' has no value '{key}' in its header")
    value = file.metadata.get(key, *default)
    # Stored as float32: 1e-5 comes back as 9.99999975e-06. Seven digits give what was meant.
    return float(f"{value:.7g}") if isinstance(value, float) else value
