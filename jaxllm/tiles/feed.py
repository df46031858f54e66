"""What goes into a tiled step and comes out: batches, parameters, moments, as ordinary trees."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxllm.models import ModelConfig
from jaxllm.tiles.gpt2 import Path, TiledStep, flat, stacked
from jaxllm.tiles.tensor import Tensor, cut, join


def put(tensor: Tensor, array) -> dict[int, jax.Array]:
    """Return an array's tiles by handle."""
    return dict(zip(tensor.handles(), cut(tensor, array), strict=True))


def take(tensor: Tensor, values: Mapping[int, jax.Array]) -> np.ndarray:
    """Return the whole array, on the host."""
    return join(tensor, [values[handle] for handle in tensor.handles()])


def put_tree(config: ModelConfig, tensors: Mapping[Path, Tensor], tree) -> dict[int, jax.Array]:
    """Return the tiles of a tree structured like the parameters."""
    values = {}
    for path, leaf in flat(config, tree).items():
        values |= put(tensors[path], leaf)
    return values


def take_tree(config: ModelConfig, tensors: Mapping[Path, Tensor], values: Mapping[int, jax.Array]) -> dict:
    """Return the tree, of NumPy arrays, that `put_tree` cut."""
    return stacked(config, {path: take(tensor, values) for path, tensor in tensors.items()})


def put_batch(step: TiledStep, batch: Mapping[str, Any], vocab_size: int) -> dict[int, jax.Array]:
    """Return the tiles of a batch, cut into the step's parts.

    Args:
      step: the program.
      batch: tokens and targets [B, T]; optional mask [B, T] and segment_ids [B, T].
      vocab_size: targets beyond it do not count.
    """
    batch = {name: np.asarray(value) for name, value in batch.items()}
    tokens, targets = batch["tokens"], batch["targets"]
    segments = batch.get("segment_ids")
    segments = np.zeros_like(tokens) if segments is None else segments
    weights = np.asarray(batch.get("mask", np.ones(tokens.shape)), step.rates.dtype)
    weights = np.where((targets >= 0) & (targets < vocab_size), weights, 0)
    whole = dict(tokens=tokens, positions=_positions(segments), segments=segments, targets=targets,
                 weights=weights)  # fmt: skip
    values = put(step.count, weights.sum() or 1.0)
    tiles = {}
    for name, array in whole.items():
        for inputs, part in zip(step.inputs, np.split(array, len(step.inputs)), strict=True):
            tiles |= _pieces(inputs[name], part)
    for tensor, array in step.constants.items():
        tiles |= _pieces(tensor, array)
    return values | jax.device_put(tiles)  # at once: each call costs as much as a small task


def put_rates(
    step: TiledStep, learning_rate: float, number: int, b1: float, b2: float
) -> dict[int, jax.Array]:
    """Return the tile of what changes from step to step.

    Args:
      step: the program.
      learning_rate: of this step.
      number: of this step, from 1.
      b1: decay of the first moment.
      b2: decay of the second.
    """
    return put(step.rates, np.array([learning_rate, 1 - b1**number, 1 - b2**number]))


def _pieces(tensor: Tensor, array: np.ndarray) -> dict[int, np.ndarray]:
    """Return copies of an array's tiles by handle, on the host."""
    result = {}
    for handle, index in zip(tensor.handles(), tensor.indices(), strict=True):
        start, shape = tensor.start(*index), tensor.shape_of(*index)
        place = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        result[handle] = np.array(array[place], tensor.dtype)
    return result


def _positions(segments: np.ndarray) -> np.ndarray:
    """Return positions that count from 0, anew in each segment."""
    index = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    starts = np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
