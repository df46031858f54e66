"""Which examples share a row: none is cut, and few places stay empty."""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """Documents by row: those of row r are order[bounds[r] : bounds[r + 1]]."""

    order: np.ndarray  # int64 [M]
    bounds: np.ndarray  # int64 [R + 1]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, number: int) -> np.ndarray:
        """Return the documents of a row; none past the last."""
        return self.order[slice(*self.bounds[number : number + 2])] if number < len(self) else self.order[:0]


def pack(lengths_N: np.ndarray, room: int, packed: bool = True) -> Packing:
    """Place documents in rows of `room` ids; those that are longer are left out.

    The longest come first, each into the row with the least room that is enough for it (best fit decreasing),
    or all into rows of their own, in order.

    Args:
      lengths_N: ids in each document.
      room: ids in a row.
      packed: several to a row.

    Examples:
      >>> packing = pack(np.array([3, 5, 9, 2, 4]), room=8)
      >>> [packing.row(r).tolist() for r in range(len(packing))]
      [[1, 0], [4, 3]]
    """
    fits = np.flatnonzero(lengths_N <= room)
    if not packed:
        return Packing(fits, np.arange(len(fits) + 1))
    row_of = np.zeros(len(fits), np.int64)
    order = fits[np.argsort(-lengths_N[fits], kind="stable")]
    open_rows: dict[int, list[int]] = {}  # room that is left -> rows
    rooms: list[int] = []  # the keys of open_rows, sorted
    count = 0
    for place, length in enumerate(lengths_N[order].tolist()):
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            left, row, count = room - length, count, count + 1
        else:
            left, row = rooms[at] - length, open_rows[rooms[at]].pop()
            if not open_rows[rooms[at]]:
                del open_rows[rooms.pop(at)]
        row_of[place] = row
        if left:
            if left not in open_rows:
                bisect.insort(rooms, left)
            open_rows.setdefault(left, []).append(row)
    by_row = np.argsort(row_of, kind="stable")
    return Packing(order[by_row], np.searchsorted(row_of[by_row], np.arange(count + 1)))
