"""A model into a Hugging Face folder: config.json, safetensors, tokenizer.json."""

import json
import os
import re
from pathlib import Path

import jax
import numpy as np

from jaxllm.atomic import new_folder
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.data.tokenizer import Tokenizer, start_id, stop_ids
from jaxllm.errors import UserError
from jaxllm.models.config import LanguageModel
from jaxllm.models.huggingface import state_dict_from_params, tensor_shapes
from jaxllm.models.huggingface_config import config_to_huggingface
from jaxllm.pretrained.safetensors_file import write_safetensors


def save_pretrained(
    folder: str | os.PathLike,
    config: LanguageModel,
    params: dict,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_size: int | str = "5GB",
    card: str | None = None,
) -> None:
    """Write a folder that transformers' and our own `from_pretrained` read, whole or not at all.

    Tensors keep the dtype that they have in `params`; a tied head is not written twice.

    Args:
      folder: a new or empty folder.
      tokenizer: saved as tokenizer.json, with the chat template, generation_config.json and ids of ends
        that it was imported with; byte and character tokenizers only jaxllm can read.
      max_shard_size: bytes, or a number with KB, MB or GB. More than that becomes several files.
      card: what README.md says; None: there is none.

    Raises:
      UserError: no Hugging Face family can hold the model, the tokenizer does not fit it, the
        folder has something in it, is a mount point or the current folder, or cannot be written.
    """
    folder = check_new(folder)
    limit = _bytes(max_shard_size)
    theirs = config_to_huggingface(config)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model's vocab_size is "
            f"{config.vocab_size}; give the tokenizer that the model was trained with"
        )
    dtypes = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(params)}
    theirs["dtype"] = dtypes.pop() if len(dtypes) == 1 else config.param_dtype
    theirs |= _ends(tokenizer)
    tensors = state_dict_from_params(config, theirs["model_type"], params)
    # The tied head is the embedding under a second name: the names of tensor_shapes leave it out.
    tensors = {name: tensors[name] for name, _ in tensor_shapes(config, theirs["model_type"])}
    with new_folder(folder) as partial:
        _write_weights(partial, tensors, limit)
        _write_json(partial / "config.json", theirs)
        if tokenizer is not None:
            save_tokenizer(partial, tokenizer)
            if not (partial / "generation_config.json").exists():  # which a tokenizer that was imported has
                _write_json(partial / "generation_config.json", _ends(tokenizer))
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and, where transformers can read it, what they want to know beside it."""
    tokenizer.save(folder / "tokenizer.json")
    if isinstance(tokenizer, HuggingFaceTokenizer):
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))


def _ends(tokenizer: Tokenizer | None) -> dict:
    """Return the ids that begin and end a text; left out, transformers would put GPT-2's 50256 there."""
    if tokenizer is None:
        return {"eos_token_id": None, "bos_token_id": None}
    declared = tokenizer.companions.generation if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    begin, ends = start_id(tokenizer), list(stop_ids(tokenizer))
    return {
        "eos_token_id": declared.get("eos_token_id", ends if len(ends) > 1 else ends[0]),
        "bos_token_id": declared.get("bos_token_id", begin),
    }


def _tokenizer_config(tokenizer: HuggingFaceTokenizer) -> dict:
    ours = {"eos_token": tokenizer.backend.id_to_token(tokenizer.eos_id)}
    theirs = dict(tokenizer.companions.tokenizer)
    theirs.pop("auto_map", None)  # names code of the folder it came from
    # The class that takes tokenizer.json as it is, instead of rebuilding it from a family.
    return ours | theirs | {"tokenizer_class": "PreTrainedTokenizerFast"}


def check_new(folder: str | os.PathLike) -> Path:
    """Return where a folder is, links followed, which must not be there yet or be empty.

    Raises:
      UserError: something is there that writing would overwrite, or an empty folder that a new one cannot
        take the place of.
    """
    folder = Path(os.path.realpath(os.path.expanduser(folder)))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"'{folder}' already exists; give a new folder, so that nothing is lost")
    if folder.is_dir() and (os.path.ismount(folder) or folder.samefile(".")):
        raise UserError(
            f"'{folder}' is a mount point or the current folder, which cannot be replaced; "
            "give a new folder in it"
        )
    return folder


def _write_weights(folder: Path, tensors: dict[str, np.ndarray], limit: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    place = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard)
        place |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _bytes(size: int | str) -> int:
    """Return a number of bytes.

    Examples:
      >>> _bytes("5GB"), _bytes("1.5 MB"), _bytes(4096)
      (5000000000, 1500000, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", str(size).strip(), re.IGNORECASE)
    bytes_ = 0 if match is None else float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " ")
    if bytes_ < 1:
        raise UserError(f"max_shard_size '{size}' is not a size; expected one such as 5GB or 200MB")
    return int(bytes_)
