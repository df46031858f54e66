"""A tensor cut into tiles: its grid, and arrays cut into tiles and joined again."""

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from jaxllm.errors import UserError


@dataclass(frozen=True)
class Tensor:
    """A shape and the shape of its tiles, row-major as arrays are; the last tile of an axis may be smaller.

    Each tile is one array with a number of its own in its program, its handle.

    Raises:
      UserError: tiles that cannot cover the shape.

    Examples:
      >>> x = Tensor("x", (4, 37), (4, 16))
      >>> x.grid, x.shape_of(0, 2), x[0, 2]
      ((1, 3), (4, 5), 2)
    """

    name: str
    shape: tuple[int, ...]
    tile_shape: tuple[int, ...]
    dtype: str = "float32"
    first: int = 0  # the handle of tile (0, ..., 0)

    def __post_init__(self):
        if len(self.shape) != len(self.tile_shape) or any(size < 1 for size in self.tile_shape):
            raise UserError(
                f"tensor '{self.name}' of shape {self.shape} cannot be covered by tiles of shape "
                f"{self.tile_shape}; give one size of at least 1 for each of its {len(self.shape)} axes"
            )

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        """How many tiles there are along each axis."""
        return tuple(-(-size // tile) for size, tile in zip(self.shape, self.tile_shape, strict=True))

    @property
    def num_tiles(self) -> int:
        """How many tiles there are."""
        return math.prod(self.grid)

    @functools.cached_property
    def _strides(self) -> tuple[int, ...]:
        return tuple(math.prod(self.grid[axis + 1 :]) for axis in range(len(self.grid)))

    def __getitem__(self, index: int | tuple[int, ...]) -> int:
        """Return the handle of a tile."""
        index = index if isinstance(index, tuple) else (index,)
        return self.first + sum(map(int.__mul__, index, self._strides))

    def indices(self):
        """Return the index of every tile, the last axis running fastest."""
        return itertools.product(*map(range, self.grid))

    def handles(self) -> range:
        """Return the handle of every tile."""
        return range(self.first, self.first + self.num_tiles)

    def start(self, *index: int) -> tuple[int, ...]:
        """Return where in the tensor a tile starts."""
        return tuple(i * tile for i, tile in zip(index, self.tile_shape, strict=True))

    def shape_of(self, *index: int) -> tuple[int, ...]:
        """Return the shape of a tile."""
        return tuple(
            min(tile, size - at)
            for at, tile, size in zip(self.start(*index), self.tile_shape, self.shape, strict=True)
        )

    def nbytes_of(self, *index: int) -> int:
        """Return the bytes of a tile."""
        return math.prod(self.shape_of(*index)) * np.dtype(self.dtype).itemsize

    def label(self, handle: int) -> str:
        """Return a tile's name, "x[0,2]"."""
        index = np.unravel_index(handle - self.first, self.grid) if self.grid else ()
        return f"{self.name}[{','.join(map(str, index))}]"


def cut(tensor: Tensor, array) -> list[jax.Array]:
    """Return the tiles of an array of the tensor's size, in the order of their handles.

    They are copies: tasks consume what they change. Cut by NumPy, no shape compiles a program of its own.
    """
    whole = np.asarray(array, tensor.dtype).reshape(tensor.shape)
    pieces = []
    for index in tensor.indices():
        start, shape = tensor.start(*index), tensor.shape_of(*index)
        pieces.append(whole[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))])
    return jax.device_put(pieces, may_alias=False)


def join(tensor: Tensor, tiles: Iterable) -> np.ndarray:
    """Return the whole array, on the host.

    Args:
      tensor: how it was cut.
      tiles: arrays in the order of their handles.
    """
    whole = np.empty(tensor.shape, tensor.dtype)
    for index, tile in zip(tensor.indices(), tiles, strict=True):
        start = tensor.start(*index)
        whole[tuple(slice(a, a + n) for a, n in zip(start, tile.shape, strict=True))] = tile
    return whole
