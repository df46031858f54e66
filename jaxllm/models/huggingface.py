"""Hugging Face checkpoints as our parameters and back.

A family's table says where each tensor lives; both directions read it. Tensors are numpy arrays;
reading and writing files is somebody else's business.
"""

import math
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError, unknown
from jaxllm.models.architecture import Declaration, declare
from jaxllm.models.config import LanguageModel
from jaxllm.models.families import FAMILIES, Buffer, Family, Tensor


def params_from_state_dict(config: LanguageModel, family: str, state_dict: Mapping[str, np.ndarray]) -> dict:
    """Return our parameters, numpy arrays in `config.param_dtype`.

    Args:
      family: one of FAMILIES, the `model_type` of a config.json.
      state_dict: tensors by Hugging Face name, with or without the leading "transformer." or
        "model.". Each is used, or is what the model has without it: a tied head, a causal mask.

    Raises:
      UserError: a tensor is missing, has the wrong shape, is not finite, or is left over.
    """
    check_left_over(config, family, state_dict)
    paths = _flat(declare(config))
    return _nested({path: param_from_state_dict(config, family, path, state_dict) for path in paths})


def param_from_state_dict(
    config: LanguageModel, family: str, path: str, state_dict: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the parameter at a path such as "layers/attn/query", in `config.param_dtype`.

    Raises:
      UserError: its tensor is missing, has the wrong shape, or is not finite.
    """
    tensor, entry = _place(_record(family), config, path), _flat(declare(config))[path]
    dtype = jnp.dtype(config.param_dtype)
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


def tensor_names(config: LanguageModel, family: str, path: str) -> list[str]:
    """Return the names of the tensors that hold the parameter at a path: one, or one a layer."""
    name, entry = _place(_record(family), config, path).name, _flat(declare(config))[path]
    return [name.format(layer=layer) for layer in range(entry.shape[0] if "layers" in entry.axes else 1)]


def tensor_shapes(config: LanguageModel, family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor that a checkpoint must hold, layer after layer.

    Raises:
      UserError: a parameter the family has no place for, such as a learned sink.
    """
    record = _record(family)
    outside, layered, layers = {}, {}, 0
    for path, entry in _flat(declare(config)).items():
        tensor, in_layer = _place(record, config, path), "layers" in entry.axes
        shape = _their_shape(entry.shape[in_layer:], tensor, entry)
        if in_layer:
            layered[tensor.name], layers = (entry.shape[0], shape), max(layers, entry.shape[0])
        else:
            outside[tensor.name] = shape
    yield from outside.items()
    for layer in range(layers):
        for name, (count, shape) in layered.items():
            if layer < count:
                yield name.format(layer=layer), shape


def state_dict_from_params(config: LanguageModel, family: str, params: dict) -> dict[str, np.ndarray]:
    """Return the Hugging Face state dict of our parameters, or of some: undo `params_from_state_dict`.

    Raises:
      UserError: a parameter the family has no place for, such as a learned sink, or that the config does
        not declare.
    """
    record, declared = _record(family), _flat(declare(config))
    state_dict: dict[str, np.ndarray] = {}
    fused: dict[tuple[str, bool], dict[int, np.ndarray]] = {}  # by (name, output_first) and part
    for path, array in _flat(params).items():
        tensor, array = _place(record, config, path), np.asarray(array)
        if path not in declared:
            raise UserError(f"the config declares no parameter {path}; give both of one model")
        for layer, one in enumerate(array if "layers" in declared[path].axes else [array]):
            name = tensor.name.format(layer=layer)
            theirs = one.reshape(_stored(one.shape, tensor, declared[path]))
            if tensor.skip:
                theirs = np.concatenate([np.zeros_like(theirs[: tensor.skip]), theirs])
            if tensor.offset:
                theirs = (theirs.astype(np.float64) - tensor.offset).astype(one.dtype)
            if tensor.part is None:
                state_dict[name] = theirs.T if tensor.output_first else theirs
            else:
                heads = one.shape[-2] if tensor.by_head else 1
                parts = fused.setdefault((name, tensor.output_first), {})
                parts[tensor.part] = theirs.reshape(*theirs.shape[:-1], heads, -1)
    for (name, output_first), parts in fused.items():
        whole = np.stack([parts[part] for part in sorted(parts)], axis=-2)
        whole = whole.reshape(*whole.shape[:-3], -1)
        state_dict[name] = whole.T if output_first else whole
    table = record.tensors["embed/tokens"].name
    if config.tie_embeddings and table in state_dict:
        state_dict[record.head] = state_dict[table]
    return state_dict


def full_name(family: str, name: str) -> str:
    """Return what the whole model calls a tensor that the base model (GPT2Model) may have saved."""
    return _record(family).full_name(name)


def check_left_over(config: LanguageModel, family: str, state_dict: Mapping[str, np.ndarray]) -> None:
    """Raise where a tensor is neither a parameter nor something that the model has without it.

    Raises:
      UserError: naming the tensor.
    """
    record, names = _record(family), {}
    for name in state_dict:
        full = full_name(family, name)
        if full in names:
            raise UserError(f"the tensors '{names[full]}' and '{name}' are one parameter; keep one of them")
        names[full] = name
    parameters = {name for name, _ in tensor_shapes(config, family)}
    tied = record.tensors["embed/tokens"].name
    for full, name in names.items():
        if full in parameters:
            continue
        buffers = [buffer for end, buffer in record.buffers.items() if full.endswith(end)]
        if buffers:
            _check_buffer(config, full, buffers[0], state_dict[name])
        elif full != record.head or not config.tie_embeddings:
            raise UserError(
                f"the tensor '{name}' has no place in a {family} model with num_layers={config.num_layers}; "
                "the checkpoint does not fit its config"
            )
        elif tied in names and not same_numbers(state_dict[name], state_dict[names[tied]]):
            raise UserError(
                f"the tensor '{name}' differs from '{names[tied]}', to which tie_embeddings=True ties it; "
                "set tie_embeddings=False"
            )


def _check_buffer(config: LanguageModel, name: str, buffer: Buffer, array: np.ndarray) -> None:
    good, meant = buffer(config, name, np.asarray(array, np.float32))
    if not good:
        raise UserError(
            f"the tensor '{name}' is a buffer that should hold {meant}, which the model computes itself, but "
            "holds something else; the model it belongs to is not supported"
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
    array = array.T if tensor.output_first else array
    array = array[tensor.skip :] if tensor.skip else array
    if tensor.offset:  # added in float64, so that what was stored rounded is not rounded twice
        array = array.astype(np.float64) + tensor.offset
    if tensor.part is not None:
        heads = shape[-2] if tensor.by_head else 1
        array = array.reshape(*array.shape[:-1], heads, tensor.parts, -1)[..., tensor.part, :]
    return array.reshape(shape)


def _their_shape(shape: tuple[int, ...], tensor: Tensor, entry: Declaration) -> tuple[int, ...]:
    """Return the shape of the tensor that holds a parameter of one layer."""
    shape = _stored(shape, tensor, entry)
    if tensor.part is not None:
        shape = (*shape[:-1], tensor.parts * shape[-1])
    if tensor.skip:
        shape = (shape[0] + tensor.skip, *shape[1:])
    return shape[::-1] if tensor.output_first else shape


def _stored(shape: tuple[int, ...], tensor: Tensor, entry: Declaration) -> tuple[int, ...]:
    """Return the shape that a parameter of one layer has alone, inputs first."""
    if not tensor.axes:
        return _merged(shape, entry)
    sizes = dict(zip(entry.axes[-len(shape) :], shape, strict=True)) | {None: 1}
    return tuple(sizes[name] for name in tensor.axes)


def _merged(shape: tuple[int, ...], entry: Declaration) -> tuple[int, ...]:
    """Merge heads and head_dim, which we keep apart: a weight is [in, out], a bias [out]."""
    inputs = len(entry.inputs)
    if inputs:
        return (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
    return (math.prod(shape),) if shape else ()


def _place(family: Family, config: LanguageModel, path: str) -> Tensor:
    places = family.places(config)
    if path not in places:
        raise UserError(f"family '{family.name}' has no place for parameter {path}")
    return places[path]


def _record(family: str) -> Family:
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
