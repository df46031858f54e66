"""Hugging Face checkpoints as our parameters and back: names, layouts and config.json.

One table a family says where each tensor lives; both directions read it. Tensors are numpy arrays;
reading and writing files is somebody else's business.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError, unknown
from jaxllm.models.config import ModelConfig
from jaxllm.models.declarations import Declaration, declare
from jaxllm.models.huggingface_buffers import check_buffer, is_buffer


class Tensor(NamedTuple):
    """Where one of our parameters is found in a state dict."""

    name: str  # "{layer}" stands for the number of the layer
    output_first: bool = False  # torch.nn.Linear stores [out, in]; GPT-2's Conv1D stores [in, out]
    part: int | None = None  # which of query, key, value in a fused projection


_GPT2 = {
    "embed/tokens": Tensor("transformer.wte.weight"),
    "embed/positions": Tensor("transformer.wpe.weight"),
    "layers/attn_norm/scale": Tensor("transformer.h.{layer}.ln_1.weight"),
    "layers/attn_norm/bias": Tensor("transformer.h.{layer}.ln_1.bias"),
    "layers/attn/query": Tensor("transformer.h.{layer}.attn.c_attn.weight", part=0),
    "layers/attn/key": Tensor("transformer.h.{layer}.attn.c_attn.weight", part=1),
    "layers/attn/value": Tensor("transformer.h.{layer}.attn.c_attn.weight", part=2),
    "layers/attn/query_bias": Tensor("transformer.h.{layer}.attn.c_attn.bias", part=0),
    "layers/attn/key_bias": Tensor("transformer.h.{layer}.attn.c_attn.bias", part=1),
    "layers/attn/value_bias": Tensor("transformer.h.{layer}.attn.c_attn.bias", part=2),
    "layers/attn/out": Tensor("transformer.h.{layer}.attn.c_proj.weight"),
    "layers/attn/out_bias": Tensor("transformer.h.{layer}.attn.c_proj.bias"),
    "layers/mlp_norm/scale": Tensor("transformer.h.{layer}.ln_2.weight"),
    "layers/mlp_norm/bias": Tensor("transformer.h.{layer}.ln_2.bias"),
    "layers/mlp/in": Tensor("transformer.h.{layer}.mlp.c_fc.weight"),
    "layers/mlp/in_bias": Tensor("transformer.h.{layer}.mlp.c_fc.bias"),
    "layers/mlp/out": Tensor("transformer.h.{layer}.mlp.c_proj.weight"),
    "layers/mlp/out_bias": Tensor("transformer.h.{layer}.mlp.c_proj.bias"),
    "final_norm/scale": Tensor("transformer.ln_f.weight"),
    "final_norm/bias": Tensor("transformer.ln_f.bias"),
    "head/kernel": Tensor("lm_head.weight", output_first=True),
}
_NEO_ATTENTION = "transformer.h.{layer}.attn.attention."
_GPT_NEO = _GPT2 | {
    "layers/attn/query": Tensor(_NEO_ATTENTION + "q_proj.weight", output_first=True),
    "layers/attn/key": Tensor(_NEO_ATTENTION + "k_proj.weight", output_first=True),
    "layers/attn/value": Tensor(_NEO_ATTENTION + "v_proj.weight", output_first=True),
    "layers/attn/out": Tensor(_NEO_ATTENTION + "out_proj.weight", output_first=True),
    "layers/attn/out_bias": Tensor(_NEO_ATTENTION + "out_proj.bias"),
    "layers/mlp/in": Tensor("transformer.h.{layer}.mlp.c_fc.weight", output_first=True),
    "layers/mlp/out": Tensor("transformer.h.{layer}.mlp.c_proj.weight", output_first=True),
}
_LLAMA = {
    "embed/tokens": Tensor("model.embed_tokens.weight"),
    "layers/attn_norm/scale": Tensor("model.layers.{layer}.input_layernorm.weight"),
    "layers/attn/query": Tensor("model.layers.{layer}.self_attn.q_proj.weight", True),
    "layers/attn/key": Tensor("model.layers.{layer}.self_attn.k_proj.weight", True),
    "layers/attn/value": Tensor("model.layers.{layer}.self_attn.v_proj.weight", True),
    "layers/attn/query_bias": Tensor("model.layers.{layer}.self_attn.q_proj.bias"),
    "layers/attn/key_bias": Tensor("model.layers.{layer}.self_attn.k_proj.bias"),
    "layers/attn/value_bias": Tensor("model.layers.{layer}.self_attn.v_proj.bias"),
    "layers/attn/out": Tensor("model.layers.{layer}.self_attn.o_proj.weight", True),
    "layers/attn/out_bias": Tensor("model.layers.{layer}.self_attn.o_proj.bias"),
    "layers/mlp_norm/scale": Tensor("model.layers.{layer}.post_attention_layernorm.weight"),
    "layers/mlp/in": Tensor("model.layers.{layer}.mlp.up_proj.weight", True),
    "layers/mlp/in_bias": Tensor("model.layers.{layer}.mlp.up_proj.bias"),
    "layers/mlp/gate": Tensor("model.layers.{layer}.mlp.gate_proj.weight", True),
    "layers/mlp/gate_bias": Tensor("model.layers.{layer}.mlp.gate_proj.bias"),
    "layers/mlp/out": Tensor("model.layers.{layer}.mlp.down_proj.weight", True),
    "layers/mlp/out_bias": Tensor("model.layers.{layer}.mlp.down_proj.bias"),
    "final_norm/scale": Tensor("model.norm.weight"),
    "head/kernel": Tensor("lm_head.weight", output_first=True),
}
HEAD = "lm_head.weight"
FAMILIES: dict[str, dict[str, Tensor]] = {"gpt2": _GPT2, "gpt_neo": _GPT_NEO, "llama": _LLAMA}


def params_from_state_dict(
    config: ModelConfig, family: str, state_dict: Mapping[str, np.ndarray]
) -> dict:
    """Return our parameters, numpy arrays in `config.param_dtype`.

    Args:
      family: one of FAMILIES, the `model_type` of a config.json.
      state_dict: tensors by Hugging Face name, with or without the leading "transformer." or
        "model.". Each is used, or is what the model has without it: a tied head, a causal mask.

    Raises:
      UserError: a tensor is missing, has the wrong shape, is not finite, or is left over.
    """
    table = _table(family)
    check_left_over(config, family, state_dict)
    dtype = jnp.dtype(config.param_dtype)

    def read(path: str, entry: Declaration) -> np.ndarray:
        tensor = _place(table, family, path)
        # Filled layer by layer: a state dict that reads from disk is never in memory as a whole.
        array = np.empty(entry.shape, dtype)
        for layer, one in enumerate(array if "layers" in entry.axes else [array]):
            name = tensor.name.format(layer=layer)
            with np.errstate(over="ignore"):
                one[...] = _from_theirs(state_dict, name, tensor, one.shape, entry)
            if not np.isfinite(one).all():
                raise UserError(
                    f"the tensor '{name}' holds NaN or numbers beyond {dtype}; the file is damaged, or its "
                    "model did not train"
                )
        return array

    return _nested({path: read(path, entry) for path, entry in _flat(declare(config)).items()})


def tensor_shapes(config: ModelConfig, family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor that a checkpoint must hold, layer after layer.

    Raises:
      UserError: a parameter the family has no place for, such as a learned sink.
    """
    table = _table(family)
    outside, layered = {}, {}
    for path, entry in _flat(declare(config)).items():
        tensor, in_layer = _place(table, family, path), "layers" in entry.axes
        names = layered if in_layer else outside
        names[tensor.name] = _their_shape(entry.shape[in_layer:], tensor, entry)
    yield from outside.items()
    for layer in range(config.num_layers):
        yield from ((name.format(layer=layer), shape) for name, shape in layered.items())


def state_dict_from_params(config: ModelConfig, family: str, params: dict) -> dict[str, np.ndarray]:
    """Return the Hugging Face state dict of our parameters: undo `params_from_state_dict`.

    Raises:
      UserError: a parameter the family has no place for, such as a learned sink, or that the config does
        not declare.
    """
    table, declared = _table(family), _flat(declare(config))
    state_dict: dict[str, np.ndarray] = {}
    fused: dict[str, dict[int, np.ndarray]] = {}
    for path, array in _flat(params).items():
        tensor, array = _place(table, family, path), np.asarray(array)
        if path not in declared:
            raise UserError(f"the config declares no parameter {path}; give both of one model")
        for layer, one in enumerate(array if "layers" in declared[path].axes else [array]):
            name = tensor.name.format(layer=layer)
            theirs = _to_theirs(one, tensor, declared[path])
            if tensor.part is None:
                state_dict[name] = theirs
            else:
                fused.setdefault(name, {})[tensor.part] = theirs
    for name, parts in fused.items():
        state_dict[name] = np.concatenate([parts[part] for part in sorted(parts)], axis=-1)
    if config.tie_embeddings:
        state_dict[HEAD] = state_dict[table["embed/tokens"].name]
    return state_dict


def full_name(family: str, name: str) -> str:
    """Return what the whole model calls a tensor that the base model (GPT2Model) may have saved."""
    prefix = _table(family)["final_norm/scale"].name.split(".", 1)[0] + "."
    return name if name.startswith((prefix, "lm_head.")) else prefix + name


def check_left_over(config: ModelConfig, family: str, state_dict: Mapping[str, np.ndarray]) -> None:
    """Raise where a tensor is neither a parameter nor something that the model has without it.

    Raises:
      UserError: naming the tensor.
    """
    names = {}
    for name in state_dict:
        full = full_name(family, name)
        if full in names:
            raise UserError(f"the tensors '{names[full]}' and '{name}' are one parameter; keep one of them")
        names[full] = name
    parameters = {name for name, _ in tensor_shapes(config, family)}
    tied = _table(family)["embed/tokens"].name
    for full, name in names.items():
        if full in parameters:
            continue
        if is_buffer(full):
            check_buffer(config, full, state_dict[name])
        elif full != HEAD or not config.tie_embeddings:
            raise UserError(
                f"the tensor '{name}' has no place in a {family} model with num_layers={config.num_layers}; "
                "the checkpoint does not fit its config"
            )
        elif tied in names and not same_numbers(state_dict[name], state_dict[names[tied]]):
            raise UserError(
                f"the tensor '{name}' differs from '{names[tied]}', to which tie_embeddings=True ties it; "
                "set tie_embeddings=False"
            )


def same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Say whether two tables are equal, without a copy of either."""
    rows = range(0, len(a), 4096)
    return a.shape == b.shape and all(np.array_equal(a[r : r + 4096], b[r : r + 4096]) for r in rows)


def _find(state_dict: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    # The base models (GPT2Model, LlamaModel) save without the wrapper's prefix.
    for candidate in (name, name.split(".", 1)[1]):
        if candidate in state_dict:
            return np.asarray(state_dict[candidate])
    raise UserError(f"the checkpoint has no tensor '{name}'")


def _from_theirs(state_dict, name, tensor: Tensor, shape: tuple[int, ...], entry: Declaration) -> np.ndarray:
    array, expected = _find(state_dict, name), _their_shape(shape, tensor, entry)
    if array.shape != expected:
        raise UserError(f"the tensor '{name}' has shape {array.shape}; expected {expected}")
    if tensor.part is not None:
        array = np.split(array, 3, axis=-1)[tensor.part]
    return (array.T if tensor.output_first else array).reshape(shape)


def _to_theirs(array: np.ndarray, tensor: Tensor, entry: Declaration) -> np.ndarray:
    array = array.reshape(_merged(array.shape, entry))
    return array.T if tensor.output_first else array


def _their_shape(shape: tuple[int, ...], tensor: Tensor, entry: Declaration) -> tuple[int, ...]:
    """Return the shape of the tensor that holds a parameter of one layer."""
    shape = _merged(shape, entry)
    if tensor.part is not None:
        shape = (*shape[:-1], 3 * shape[-1])
    return shape[::-1] if tensor.output_first else shape


def _merged(shape: tuple[int, ...], entry: Declaration) -> tuple[int, ...]:
    """Merge heads and head_dim, which we keep apart: a weight is [in, out], a bias [out]."""
    inputs = len(entry.inputs)
    if inputs:
        return (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
    return (math.prod(shape),) if shape else ()


def _place(table: Mapping[str, Tensor], family: str, path: str) -> Tensor:
    if path not in table:
        raise UserError(f"family '{family}' has no place for parameter {path}")
    return table[path]


def _table(family: str) -> dict[str, Tensor]:
    if family not in FAMILIES:
        raise unknown("model family", family, FAMILIES)
    return FAMILIES[family]


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        flat |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return flat


def _nested(flat: dict) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
