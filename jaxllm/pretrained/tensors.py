"""Named tensors that lie in files, each read when it is asked for."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.config import LanguageModel
from jaxllm.models.families import FAMILIES
from jaxllm.models.huggingface import check_left_over, full_name, same_numbers, tensor_shapes


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


def fit(tensors: Tensors, config: LanguageModel, family: str, source: str) -> tuple[LanguageModel, Tensors]:
    """Return the config, and the tensors that it needs under the names that the whole model gives them.

    Every tensor is used, or holds what the model has without it. A head that is not the table of tokens
    is used, whatever the config says of tying them. A checkpoint that does not fit is refused by its names
    and shapes, before memory is spent on it.

    Args:
      tensors: all that the files hold, also by the base model's names (without "transformer.").
      source: the folder or file, for messages.

    Raises:
      UserError: naming the tensor that is missing, has another shape or dtype, or is left over.
    """
    named = {full_name(family, name): tensor for name, tensor in tensors.stored.items()}
    config = _untied_if_it_differs(config, family, named)
    needed = {}
    for name, shape in tensor_shapes(config, family):
        tensor = named.get(name)
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
    check_left_over(config, family, tensors)
    return config, Tensors(needed)


def _untied_if_it_differs(config: LanguageModel, family: str, named) -> LanguageModel:
    head, table = named.get(FAMILIES[family].head), named.get(FAMILIES[family].tensors["embed/tokens"].name)
    if not config.tie_embeddings or head is None or table is None or same_numbers(head.read(), table.read()):
        return config
    return dataclasses.replace(config, tie_embeddings=False)


def _check_dtype(tensor: StoredTensor) -> None:
    if tensor.dtype in ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"):
        raise UserError(
            f"the tensor '{tensor.name}' in '{tensor.file}' holds {tensor.dtype}; expected floating "
            "point numbers"
        )
