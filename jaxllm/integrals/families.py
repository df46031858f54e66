"""Random functions whose integrals are looked for: polynomials, exponentials, waves and mixtures."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxllm.config import Config, Count, CountOrZero
from jaxllm.errors import unknown
from jaxllm.integrals.formulas import ONE, Formula, Term

FAMILIES = ("polynomial", "exponential", "wave", "mixture")
_KEPT = 0.7  # chance of each coefficient of a polynomial


@dataclass(frozen=True)
class Ranges(Config):
    """What functions are drawn from. Coefficients are whole and not 0."""

    least_degree: CountOrZero = 0  # of polynomials
    most_degree: CountOrZero = 4
    mixed_degree: CountOrZero = 2  # of a mixture's polynomial
    most_coefficient: Count = 9
    alone: Count = 99  # the same where a function is an exponential or a wave: of single ones there are few
    rates: Count = 5  # of exp, sin and cos: up to so many


def draw_function(draw: np.random.Generator, family: str, ranges: Ranges = Ranges()) -> Formula:
    """Return a random function f.

    Raises:
      UserError: no such family.

    Examples:
      >>> str(draw_function(np.random.default_rng(0), "mixture"))
      '-8x^2-2x-6cos(5x)+6'
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    while True:
        terms: list[tuple[Term, Fraction]] = []
        if family == "polynomial":
            terms += _polynomial(
                draw, int(draw.integers(ranges.least_degree, ranges.most_degree + 1)), ranges
            )
        elif family == "mixture":
            terms += _polynomial(draw, int(draw.integers(0, ranges.mixed_degree + 1)), ranges)
        if family != "polynomial":
            kinds = {"exponential": ("exp",), "wave": ("sin", "cos")}.get(family, ("exp", "sin", "cos"))
            most = ranges.most_coefficient if family == "mixture" else ranges.alone
            for _ in range(1 if family == "mixture" else int(draw.integers(1, 3))):
                rate = int(draw.integers(1, ranges.rates + 1)) * (1 if draw.random() < 0.5 else -1)
                terms.append((Term(str(draw.choice(kinds)), rate), _whole(draw, most)))
        if (found := Formula.make(terms)).terms:
            return found


def draw_distinct(
    draw: np.random.Generator,
    count: int,
    families: Iterable[str] = FAMILIES,
    ranges: Ranges = Ranges(),
    without: Iterable[Formula] = (),
) -> list[tuple[str, Formula]]:
    """Return distinct functions with their families, the families in turn; none of `without`.

    A family that has no more to offer is left out from there on.
    """
    seen, found, open_families = set(without), [], list(families)
    while len(found) < count and open_families:
        for family in tuple(open_families):
            drawn = (draw_function(draw, family, ranges) for _ in range(200))
            new = next((one for one in drawn if one not in seen), None)
            if new is None:
                open_families.remove(family)
            elif len(found) < count:
                seen.add(new)
                found.append((family, new))
    return found


def _polynomial(draw, degree: int, ranges: Ranges) -> list[tuple[Term, Fraction]]:
    """Return terms up to a degree, each with a chance; the highest is always there."""
    kept = [k for k in range(degree + 1) if k == degree or draw.random() < _KEPT]
    return [(Term("power", k) if k else ONE, _whole(draw, ranges.most_coefficient)) for k in kept]


def _whole(draw, most: int) -> Fraction:
    return Fraction(int(draw.integers(1, most + 1)) * (1 if draw.random() < 0.5 else -1))
