"""Rows of unequal length in batches of similar length, padded to one of few shapes: few programs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class LengthBatch(NamedTuple):
    """Which rows share a call of the model, and the shape that they are padded to."""

    rows: list[int]
    size: int
    length: int

    def fill(self, ids: Sequence[Sequence[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return these rows of all, padded on the right: (tokens, mask), int32 [size, length].

        The mask is 1 at tokens and 0 at padding, whole rows of which end a batch: `models.trunk` takes it as
        `segment_ids`.

        Examples:
          >>> for array in LengthBatch([1, 0], size=2, length=4).fill([[5], [6, 7]]): print(array.tolist())
          [[6, 7, 0, 0], [5, 0, 0, 0]]
          [[1, 1, 0, 0], [1, 0, 0, 0]]
        """
        tokens_BT = np.full((self.size, self.length), pad, np.int32)
        mask_BT = np.zeros_like(tokens_BT)
        for place, row in enumerate(self.rows):
            tokens_BT[place, : len(ids[row])] = ids[row]
            mask_BT[place, : len(ids[row])] = 1
        return tokens_BT, mask_BT


def padded_length(length: int, least: int = 4) -> int:
    """Return the length that a row, or a batch, is padded to: by `least` - 1 or 12.5 % at most.

    Examples:
      >>> [padded_length(n) for n in (1, 33, 100, 1000)], [padded_length(n, 1) for n in (1, 3, 33)]
      ([4, 36, 104, 1024], [1, 3, 36])
    """
    step = max(least, 2 ** max(0, length.bit_length() - 4))
    return -(-length // step) * step


def length_batches(lengths: Sequence[int], longest: int, tokens_per_batch: int) -> Iterator[LengthBatch]:
    """Yield batches of rows of similar length, the longest first: memory fails at once.

    Args:
      lengths: of the rows.
      longest: what no row is padded beyond.
      tokens_per_batch: what one call of the model computes at most, padding included, unless one row is
        longer.

    Examples:
      >>> for batch in length_batches([5, 90, 100, 2, 99], longest=1024, tokens_per_batch=256): print(*batch)
      [2, 4] 2 104
      [1] 1 96
      [0] 1 8
      [3] 1 4
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        first = lengths[order[0]]
        length = min(padded_length(first), longest)
        most = max(1, tokens_per_batch // length)
        # Much shorter rows are better off in a batch of their own.
        near = next((i for i, row in enumerate(order[:most]) if lengths[row] < 0.8 * first), most)
        count = min(near, len(order))
        yield LengthBatch(order[:count], min(padded_length(count, 1), most), length)
        order = order[count:]
