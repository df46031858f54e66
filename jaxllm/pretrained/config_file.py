"""A config.json, checked field by field before anything is built from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.config import check
from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.json_file import read_json
from jaxllm.models.config import LanguageModel
from jaxllm.models.families import FAMILIES, Family
from jaxllm.models.huggingface_config import config_from_huggingface

_MAX_BYTES = 2**20
# What would change the result if it were overlooked.
_UNSUPPORTED = ("add_cross_attention", "quantization_config")


def read_config(path: str | Path, **overrides) -> tuple[LanguageModel, str]:
    """Return (config, family) of a config.json; overrides set dtype and param_dtype.

    Raises:
      UserError: the file is missing or not JSON, names a model of none of FAMILIES,
        or has a field that is missing, malformed, or asks for what is not supported.
    """
    return checked_config(read_json(path, most_bytes=_MAX_BYTES), str(path), **overrides)


def checked_config(theirs: Mapping[str, Any], source: str, **overrides) -> tuple[LanguageModel, str]:
    """Do the same for the content of a config.json; `source` is for messages."""
    family = theirs.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{source}: {unknown('model_type', bare(family), FAMILIES)}")
    theirs = {name: value for name, value in theirs.items() if value is not None}
    _check(theirs, FAMILIES[family], source)
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


def _check(theirs: Mapping[str, Any], family: Family, source: str) -> None:
    for name, kind in (family.required | family.optional).items():
        if name not in theirs:
            if name in family.required:
                raise UserError(f"{source} has no '{name}', which a {family.name} model needs")
        else:
            check(f"{source}: {name}", theirs[name], kind)
    for name in _UNSUPPORTED:
        if theirs.get(name):
            raise UserError(f"{source}: {name} is {brief(theirs[name])}, which is not supported")
    family.check(theirs, source)
