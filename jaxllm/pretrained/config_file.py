"""A config.json, checked field by field before anything is built from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.config import Positive, Size, check, fits
from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.json_file import read_json
from jaxllm.models.config import Layers, ModelConfig
from jaxllm.models.huggingface_config import config_from_huggingface

_MAX_BYTES = 2**20
# Fields that each family must say, and that it may say: what config_from_huggingface reads.
_REQUIRED = {
    "gpt2": dict(
        vocab_size=Size, n_positions=Size, n_layer=Layers, n_embd=Size, n_head=Size,
        activation_function=str, layer_norm_epsilon=Positive,
    ),
    "gpt_neo": dict(
        vocab_size=Size, max_position_embeddings=Size, num_layers=Layers, hidden_size=Size,
        num_heads=Size, activation_function=str, layer_norm_epsilon=Positive, window_size=Size,
    ),
    "llama": dict(
        vocab_size=Size, max_position_embeddings=Size, num_hidden_layers=Layers, hidden_size=Size,
        num_attention_heads=Size, intermediate_size=Size, hidden_act=str, rms_norm_eps=Positive,
    ),
}  # fmt: skip
_OPTIONAL = {
    "gpt2": dict(
        n_inner=Size, tie_word_embeddings=bool, initializer_range=Positive, scale_attn_weights=bool,
        scale_attn_by_inverse_layer_idx=bool,
    ),
    "gpt_neo": dict(intermediate_size=Size, tie_word_embeddings=bool, initializer_range=Positive),
    "llama": dict(
        num_key_value_heads=Size, head_dim=Size, attention_bias=bool, mlp_bias=bool,
        rope_theta=Positive, tie_word_embeddings=bool, initializer_range=Positive,
    ),
}  # fmt: skip
# What would change the result if it were overlooked.
_UNSUPPORTED = ("add_cross_attention", "quantization_config")


def read_config(path: str | Path, **overrides) -> tuple[ModelConfig, str]:
    """Return (ModelConfig, family) of a config.json; overrides set dtype and param_dtype.

    Raises:
      UserError: the file is missing or not JSON, names a model that is not GPT-2, GPT-Neo or Llama,
        or has a field that is missing, malformed, or asks for what is not supported.
    """
    return checked_config(read_json(path, most_bytes=_MAX_BYTES), str(path), **overrides)


def checked_config(theirs: Mapping[str, Any], source: str, **overrides) -> tuple[ModelConfig, str]:
    """Do the same for the content of a config.json; `source` is for messages."""
    family = theirs.get("model_type")
    if not isinstance(family, str) or family not in _REQUIRED:
        raise UserError(f"{source}: {unknown('model_type', bare(family), _REQUIRED)}")
    theirs = {name: value for name, value in theirs.items() if value is not None}
    _check(theirs, family, source)
    try:
        return config_from_huggingface(theirs, **overrides), family
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def read_index(path: Path) -> dict[str, str]:
    """Return the weight_map of a model.safetensors.index.json: tensor name to file name.

    Raises:
      UserError: the file is not such an index, or points outside its folder.
    """
    names = read_json(path, most_bytes=16 * _MAX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path} has no weight_map; expected the file of each tensor by name")
    for tensor, file in names.items():
        # Names only: "../../elsewhere" would make a model folder read what its owner chose.
        good = isinstance(file, str) and file.isprintable() and len(file.encode()) <= 255
        if not good or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{path} places the tensor {brief(tensor)} in {brief(file)}; expected the name of a "
                ".safetensors file of the same folder"
            )
    return names


def _check(theirs: Mapping[str, Any], family: str, source: str) -> None:
    for name, kind in (_REQUIRED[family] | _OPTIONAL[family]).items():
        if name not in theirs:
            if name in _REQUIRED[family]:
                raise UserError(f"{source} has no '{name}', which a {family} model needs")
        else:
            check(f"{source}: {name}", theirs[name], kind)
    for name in _UNSUPPORTED:
        if theirs.get(name):
            raise UserError(f"{source}: {name} is {brief(theirs[name])}, which is not supported")
    layers = theirs[{"gpt2": "n_layer", "gpt_neo": "num_layers"}.get(family, "num_hidden_layers")]
    if family == "gpt_neo":
        _check_attention_types(theirs.get("attention_types"), layers, source)
    if family == "llama":
        _check_rope(theirs, source)


def _check_attention_types(types: Any, layers: int, source: str) -> None:
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


def _check_rope(theirs: Mapping[str, Any], source: str) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        rope = theirs.get(name, {})
        good = isinstance(rope, dict) and fits(rope.get("rope_theta", 1.0), Positive)
        good = good and all(fits(rope.get(key, "default"), str) for key in ("rope_type", "type"))
        if not good or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{source}: {name} is {brief(rope)}, which is not supported")
