"""What one family of published models is: the record that all generic code reads."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import unknown
from jaxllm.models.config import LanguageModel, ModelConfig


class Tensor(NamedTuple):
    """Where one of our parameters is found in a state dict."""

    name: str  # "{layer}" stands for the number of the layer
    output_first: bool = False  # torch.nn.Linear stores [out, in]; GPT-2's Conv1D stores [in, out]
    part: int | None = None  # which of query, key, value in a fused projection
    by_head: bool = False  # fused as [heads, 3, head_dim], not [3, heads, head_dim]
    offset: float = 0.0  # ours less theirs: 1 for a gain that is stored as its difference from 1
    parts: int = 3  # of a fused projection
    axes: tuple[str | None, ...] = ()  # of what is stored unmerged and is no product's weight; None: length 1
    skip: int = 0  # rows of theirs before ours, which no model reads


# (config, the tensor's name, its numbers in float32) -> (whether they are those that the model computes in
# their place, what they should be).
Buffer = Callable[[Any, str, np.ndarray], tuple[bool, str]]


@dataclass(frozen=True)
class Gguf:
    """How GGUF files hold a family's models, beyond what those of all families have in common."""

    architecture: str
    tensors: Mapping[str, str]  # their name in a state dict by that in the file, both without ".weight"
    # (a header's value by name, after "ARCHITECTURE."; names of the file's tensors) -> config.json's fields
    read: Callable[[Callable[..., Any], Collection[str]], dict[str, Any]]
    rotates_neighbours: bool = False  # rows of query and key lie in pairs (2i, 2i + 1), not in halves


@dataclass(frozen=True)
class Family:
    """One family: its tensors, its config.json both ways, its buffers and its models by known names.

    A new family is one file that makes a record, and one entry of `FAMILIES`.
    """

    name: str  # the model_type of a config.json
    title: str  # for messages
    tensors: Mapping[str, Tensor]  # by the path of our parameter: "layers/attn/query"
    required: Mapping[str, Any]  # fields of a config.json and what they may hold (see `jaxllm.config.check`)
    optional: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]  # a config.json -> fields of our config
    write: Callable[[Any], dict[str, Any]]  # the reverse; what it cannot say is found by reading it
    presets: Mapping[str, LanguageModel]
    config: type[LanguageModel] = ModelConfig  # whose fields `read` returns
    # config -> places that depend on it, instead of those in `tensors`
    other_tensors: Callable[[Any], Mapping[str, Tensor]] = lambda config: {}
    prefix: str | None = None  # of the base model's tensors in the whole model; None: the final norm's
    # (config.json, where it came from) raises a UserError where fields are malformed beyond their types
    check: Callable[[Mapping[str, Any], str], None] = lambda theirs, source: None
    buffers: Mapping[str, Buffer] = field(default_factory=dict)  # by the end of the tensor's name
    spellings: Mapping[str, str] = field(default_factory=dict)  # ends of names in old files: what they became
    gguf: Gguf | None = None

    def places(self, config: LanguageModel) -> Mapping[str, Tensor]:
        """Return the tensors of a model, by the path of our parameter."""
        return {**self.tensors, **self.other_tensors(config)}

    @property
    def head(self) -> str:
        """Return the name of the head's weights."""
        return self.tensors["head/kernel"].name

    @property
    def base_prefix(self) -> str:
        """Return what the whole model puts before the names of the base model's tensors."""
        if self.prefix is not None:
            return self.prefix
        return self.tensors["embed/tokens"].name.split(".", 1)[0] + "."

    def full_name(self, name: str) -> str:
        """Return what the whole model calls a tensor that the base model (GPT2Model) may have saved."""
        for old, new in self.spellings.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        wholes = {tensor.name.split(".", 1)[0] for tensor in self.tensors.values()}
        return name if name.split(".", 1)[0] in wholes else self.base_prefix + name


def model(layers: int, width: int, heads: int, **rest) -> ModelConfig:
    """Return a preset, by the three sizes that every family has."""
    return ModelConfig(num_layers=layers, embed_dim=width, num_heads=heads, **rest)


def shortest_pattern(values: tuple) -> tuple:
    """Return the first values whose repetition gives all of them.

    Examples:
      >>> shortest_pattern((0, 5, 0, 5))
      (0, 5)
    """
    for size in range(1, len(values) + 1):
        if len(values) % size == 0 and values[:size] * (len(values) // size) == values:
            return values[:size]
    return values


# Small models read bytes until told otherwise; give vocab_size for another tokenizer.
BYTES = dict(vocab_size=256)

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "silu": "silu", "relu": "relu"}


def read_activation(theirs: Mapping[str, Any], field: str, default: str = "gelu_new") -> str:
    """Return our name of the activation that a field of a config.json names.

    Raises:
      UserError: one that we do not have.
    """
    name = theirs.get(field, default)
    if name not in _ACTIVATIONS:
        raise unknown("activation", str(name), _ACTIVATIONS)
    return _ACTIVATIONS[name]
