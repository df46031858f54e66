"""Named tensors that lie in files, each read when it is asked for."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.models.huggingface import tensor_shapes

_TRUNK = {"gpt2": "transformer.", "gpt_neo": "transformer.", "llama": "model."}
# What old checkpoints store beside the weights: causal masks and rotary frequencies.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
            "rotary_emb.inv_freq")  # fmt: skip


class StoredTensor(NamedTuple):
    """One tensor of a file, not read yet."""

    name: str  # as the file spells it
    shape: tuple[int, ...]
    dtype: str  # in the file's own terms
    file: str
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """A state dict whose arrays are read from disk each time, so that none stays in memory."""

    def __init__(self, stored: Mapping[str, StoredTensor]):
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor.
        return name in self.stored


def fit(tensors: Tensors, config: ModelConfig, family: str, source: str) -> Tensors:
    """Return the tensors that the model needs, under the names that the whole model gives them.

    Nothing is read: a checkpoint that does not fit is refused before memory is spent on it.

    Args:
      tensors: all that the files hold, also by the base model's names (without "transformer.").
      source: the folder or file, for messages.

    Raises:
      UserError: naming the tensor that is missing, has another shape or dtype, or is left over.
    """
    prefix = _TRUNK[family]
    named = {
        name if name.startswith((prefix, "lm_head.")) else prefix + name: tensor
        for name, tensor in tensors.stored.items()
    }
    needed = {}
    for name, shape in tensor_shapes(config, family):
        tensor = named.pop(name, None)
        if tensor is None:
            raise UserError(
                f"'{source}' has no tensor '{name}', which a {family} model with "
                f"num_layers={config.num_layers} needs; it is incomplete or does not fit its config"
            )
        if tensor.shape != shape:
            raise UserError(
                f"the tensor '{tensor.name}' in '{tensor.file}' has shape {list(tensor.shape)}; the "
                f"config asks for {list(shape)}"
            )
        _check_dtype(tensor)
        needed[name] = tensor
    for name, tensor in named.items():
        if name.endswith(_BUFFERS) or (name == "lm_head.weight" and config.tie_embeddings):
            continue
        raise UserError(
            f"the tensor '{tensor.name}' in '{tensor.file}' has no place in a {family} model with "
            f"num_layers={config.num_layers}; the file does not fit its config"
        )
    return Tensors(needed)


def _check_dtype(tensor: StoredTensor) -> None:
    if tensor.dtype in ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"):
        raise UserError(
            f"the tensor '{tensor.name}' in '{tensor.file}' holds {tensor.dtype}; expected floating "
            "point numbers"
        )
