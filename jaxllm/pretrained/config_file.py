"""A config.json, checked field by field before anything is built from it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError, unknown
from jaxllm.models.config import ModelConfig
from jaxllm.models.huggingface_config import config_from_huggingface
from jaxllm.pretrained.messages import bare, brief

_MAX_BYTES = 2**20
_MAX_SIZE = 2**28  # of any one axis; a larger one is a damaged file, not a model
_MAX_LAYERS = 4096

_SIZE, _RATE, _FLAG, _NAME = "a whole number from 1 on", "a positive number", "true or false", "a name"
# Fields that each family must say, and that it may say: what config_from_huggingface reads.
_REQUIRED = {
    "gpt2": dict(
        vocab_size=_SIZE, n_positions=_SIZE, n_layer=_SIZE, n_embd=_SIZE, n_head=_SIZE,
        activation_function=_NAME, layer_norm_epsilon=_RATE,
    ),
    "gpt_neo": dict(
        vocab_size=_SIZE, max_position_embeddings=_SIZE, num_layers=_SIZE, hidden_size=_SIZE,
        num_heads=_SIZE, activation_function=_NAME, layer_norm_epsilon=_RATE, window_size=_SIZE,
    ),
    "llama": dict(
        vocab_size=_SIZE, max_position_embeddings=_SIZE, num_hidden_layers=_SIZE, hidden_size=_SIZE,
        num_attention_heads=_SIZE, intermediate_size=_SIZE, hidden_act=_NAME, rms_norm_eps=_RATE,
    ),
}  # fmt: skip
_OPTIONAL = {
    "gpt2": dict(
        n_inner=_SIZE, tie_word_embeddings=_FLAG, initializer_range=_RATE, scale_attn_weights=_FLAG,
        scale_attn_by_inverse_layer_idx=_FLAG,
    ),
    "gpt_neo": dict(intermediate_size=_SIZE, tie_word_embeddings=_FLAG, initializer_range=_RATE),
    "llama": dict(
        num_key_value_heads=_SIZE, head_dim=_SIZE, attention_bias=_FLAG, mlp_bias=_FLAG,
        rope_theta=_RATE, tie_word_embeddings=_FLAG, initializer_range=_RATE,
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
    return checked_config(_read_json(Path(path), _MAX_BYTES), str(path), **overrides)


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
    names = _read_json(path, 16 * _MAX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path} has no weight_map; expected the file of each tensor by name")
    for tensor, file in names.items():
        # Names only: "../../elsewhere" would make a model folder read what its owner chose.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{path} places the tensor {brief(tensor)} in {brief(file)}; expected the name of a "
                ".safetensors file of the same folder"
            )
    return names


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror or error})") from error
    if len(text) > limit:
        raise UserError(f"'{path}' has more than {limit:,} bytes, too many for what it should hold")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON ({str(error)[:80]})") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no JSON object; expected names and values")
    return content


def _check(theirs: Mapping[str, Any], family: str, source: str) -> None:
    for name, kind in (_REQUIRED[family] | _OPTIONAL[family]).items():
        if name not in theirs:
            if name in _REQUIRED[family]:
                raise UserError(f"{source} has no '{name}', which a {family} model needs")
        elif not _fits(theirs[name], kind):
            raise UserError(f"{source}: {name} is {brief(theirs[name])}; expected {kind}")
    for name in _UNSUPPORTED:
        if theirs.get(name):
            raise UserError(f"{source}: {name} is {brief(theirs[name])}, which is not supported")
    layers = theirs[{"gpt2": "n_layer", "gpt_neo": "num_layers"}.get(family, "num_hidden_layers")]
    if layers > _MAX_LAYERS:
        raise UserError(f"{source}: a model of {layers} layers; expected at most {_MAX_LAYERS}")
    if family == "gpt_neo":
        _check_attention_types(theirs.get("attention_types"), layers, source)
    if family == "llama":
        _check_rope(theirs, source)


def _fits(value: Any, kind: str) -> bool:
    if kind is _SIZE:
        return type(value) is int and 0 < value <= _MAX_SIZE
    if kind is _RATE:
        return type(value) in (int, float) and 0 < value < 1e30 and math.isfinite(value)
    if kind is _FLAG:
        return isinstance(value, bool)
    return isinstance(value, str) and value.isprintable() and len(value) <= 40


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
        good = isinstance(rope, dict) and _fits(rope.get("rope_theta", 1.0), _RATE)
        good = good and all(_fits(rope.get(key, "default"), _NAME) for key in ("rope_type", "type"))
        if not good or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{source}: {name} is {brief(rope)}, which is not supported")
