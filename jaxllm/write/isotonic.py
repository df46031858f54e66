"""Scores made chances by a line that never falls, and the threshold of a wanted precision."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.errors import UserError


class Isotonic(NamedTuple):
    """A rising line from scores to chances.

    Examples:
      >>> line = fit_isotonic([0.1, 0.2, 0.3, 0.8], [0, 1, 0, 1])
      >>> [float(chance) for chance in (line(0.05), line(0.25), line(0.8))]  # 0.2 and 0.3 are one block
      [0.0, 0.5, 1.0]
    """

    scores: tuple[float, ...]  # where the line bends
    chances: tuple[float, ...]

    def __call__(self, score: float) -> float:
        """Return the chance that a suggestion of this score is right."""
        return float(np.interp(score, self.scores, self.chances))


IDENTITY = Isotonic((0.0, 1.0), (0.0, 1.0))


def fit_isotonic(scores: Sequence[float], hits: Sequence[bool]) -> Isotonic:
    """Return the rising line nearest to hits, by pooling adjacent violators; between blocks it is straight.

    Args:
      scores: of suggestions.
      hits: whether each was right.

    Raises:
      UserError: nothing to fit.
    """
    if not len(scores):
        raise UserError("there are no scores to calibrate; replay some text first")
    values, place = np.unique(np.asarray(scores, float), return_inverse=True)
    blocks: list[list[float]] = []  # sum of hits, how many, sum of scores; equal scores begin as one
    for value, hit, count in zip(values, np.bincount(place, hits), np.bincount(place), strict=True):
        blocks.append([float(hit), float(count), float(value * count)])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return Isotonic(
        tuple(total / count for _, count, total in blocks), tuple(hit / count for hit, count, _ in blocks)
    )


def threshold(chances: Sequence[float], hits: Sequence[bool], precision: float) -> float:
    """Return the lowest chance from which on suggestions are right as often as wanted; 2 if there is none.

    No chance reaches 2, so that nothing is shown.

    Examples:
      >>> threshold([0.9, 0.6, 0.5, 0.1], [1, 1, 0, 0], precision=0.6)
      0.5
    """
    values, place = np.unique(-np.asarray(chances, float), return_inverse=True)
    right = np.cumsum(np.bincount(place, hits)) / np.cumsum(np.bincount(place))
    good = np.flatnonzero(right >= precision)
    return float(-values[good[-1]]) if len(good) else 2.0
