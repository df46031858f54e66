"""The simplest fraction near a number, and how likely a number that is none would have one so near."""

from typing import NamedTuple

import numpy as np

MOST_UNDER = 120  # the largest denominator that is looked for


class Near(NamedTuple):
    """Simplest fractions within tolerances: arrays of one shape."""

    over: np.ndarray  # int64
    under: np.ndarray  # int64; 0 where no fraction with a denominator up to MOST_UNDER is near enough
    chance: np.ndarray  # how little it can be believed: see `nearest_fractions`


def nearest_fractions(values: np.ndarray, tolerances: np.ndarray) -> Near:
    """Return the fraction with the smallest denominator within each tolerance.

    Between 0 and 1 about 3 / pi^2 q^2 fractions have a denominator up to q: so many times twice the tolerance
    are expected near any number. That times q, for large denominators are rare in coefficients, is their
    `chance`: a small one says that the fraction is no accident.

    Examples:
      >>> near = nearest_fractions(np.array([0.3333334, 0.3333334]), np.array([1e-6, 1e-9]))
      >>> near.over.tolist(), near.under.tolist(), near.chance.round(6).tolist()
      ([1, 0], [3, 0], [1.6e-05, inf])
    """
    values, tolerances = (np.asarray(x, np.float64) for x in (values, tolerances))
    over, under = np.zeros(values.shape, np.int64), np.zeros(values.shape, np.int64)
    bounded = np.where(np.isfinite(values) & (np.abs(values) < 1e12), values, np.pi * 1e9)
    for q in range(MOST_UNDER, 0, -1):
        p = np.rint(bounded * q)
        near = np.abs(p - bounded * q) <= q * tolerances
        over, under = np.where(near, p, over).astype(np.int64), np.where(near, q, under)
    fractions = np.maximum(1.0, 3 / np.pi**2 * under.astype(np.float64) ** 2)
    return Near(over, under, np.where(under > 0, 2 * tolerances * fractions * under, np.inf))
