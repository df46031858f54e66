"""Formulas as sums of terms with rational coefficients: x^k, exp(bx), sin(bx), cos(bx); text both ways."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

KINDS = ("power", "exp", "sin", "cos")
_TERM = re.compile(
    r"(?P<sign>[+-]?)(?P<over>\d+)?(?:/(?P<under>\d+))?"
    r"(?P<basis>x(?:\^(?P<power>\d+))?|(?P<kind>exp|sin|cos)\((?P<rate>-?\d*)x\))?"
)
_MOST_DIGITS = 9  # of a number in a text: what a model writes may be longer, and means nothing


class Term(NamedTuple):
    """What a coefficient multiplies: x^number, or exp, sin or cos of number * x."""

    kind: str
    number: int

    def __str__(self) -> str:
        if self.kind == "power":
            return {0: "", 1: "x"}.get(self.number, f"x^{self.number}")
        rate = {1: "", -1: "-"}.get(self.number, str(self.number))
        return f"{self.kind}({rate}x)"

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the term at every x, float64."""
        x = np.asarray(x, np.float64)
        if self.kind == "power":
            return x**self.number
        return getattr(np, self.kind)(self.number * x)

    @property
    def at_zero(self) -> int:
        """Its value at 0, which is whole."""
        return int(self.kind in ("exp", "cos") or (self.kind == "power" and self.number == 0))


ONE = Term("power", 0)


@dataclass(frozen=True)
class Formula:
    """A sum of terms, in an order of its own, none with the coefficient 0: equal formulas are equal.

    Examples:
      >>> area = Formula.make({Term("power", 3): Fraction(1, 3), Term("exp", -2): -2, ONE: Fraction(1, 2)})
      >>> str(area)
      '1/3x^3-2exp(-2x)+1/2'
      >>> Formula.parse(str(area)) == area
      True
    """

    terms: tuple[tuple[Term, Fraction], ...]

    @classmethod
    def make(cls, coefficients: Mapping[Term, Fraction | int] | Iterable[tuple[Term, Fraction | int]]):
        """Return the formula of (term, coefficient) pairs; equal terms are added up.

        sin and cos of a negative multiple are written with a positive one; of 0, and exp of 0, as numbers.
        """
        total: dict[Term, Fraction] = {}
        pairs = coefficients.items() if isinstance(coefficients, Mapping) else coefficients
        for term, coefficient in pairs:
            if term.kind != "power" and term.number == 0:
                term, coefficient = ONE, coefficient * term.at_zero
            elif term.kind in ("sin", "cos") and term.number < 0:
                term, coefficient = (
                    Term(term.kind, -term.number),
                    coefficient * (-1 if term.kind == "sin" else 1),
                )
            total[term] = total.get(term, Fraction(0)) + coefficient
        kept = [(term, Fraction(value)) for term, value in total.items() if value]
        return cls(tuple(sorted(kept, key=lambda pair: _order(pair[0]))))

    @classmethod
    def parse(cls, text: str) -> "Formula | None":
        """Return the formula that a text is, in any order of terms; None where it is none."""
        place, pairs = 0, []
        while place < len(text):
            match = _TERM.match(text, place)
            if match.end() == place or (pairs and not match["sign"]):
                return None
            over, under = match["over"], match["under"]
            if (over is None and (under or not match["basis"])) or under is not None and int(under) == 0:
                return None
            if any(
                part and len(part) > _MOST_DIGITS for part in (over, under, match["power"], match["rate"])
            ):
                return None
            coefficient = Fraction(int(over or 1), int(under or 1)) * (-1 if match["sign"] == "-" else 1)
            pairs.append((_term(match), coefficient))
            place = match.end()
        return cls.make(pairs) if pairs else None

    def __str__(self) -> str:
        written = "".join(_signed(term, value) for term, value in self.terms)
        return written.removeprefix("+") or "0"

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the formula at every x, float64; infinite where it is too large for one."""
        x = np.asarray(x, np.float64)
        total = np.zeros_like(x)
        with np.errstate(over="ignore", invalid="ignore"):
            for term, value in self.terms:
                total += float(value) * term.values(x)
        return total

    @property
    def coefficients(self) -> dict[Term, Fraction]:
        """The coefficient of each term that has one."""
        return dict(self.terms)


def from_zero(coefficients: Mapping[Term, Fraction | int]) -> Formula:
    """Return the formula with the constant that makes it 0 at x = 0, as an area is.

    Examples:
      >>> str(from_zero({Term("exp", 2): Fraction(3, 2)}))
      '3/2exp(2x)-3/2'
    """
    lost = -sum(value * term.at_zero for term, value in coefficients.items())
    return Formula.make([*coefficients.items(), (ONE, lost)])


def columns(terms: Iterable[Term], x_M: np.ndarray) -> np.ndarray:
    """Return each term less its value at 0 as a column, float64 [M, P]: what areas are sums of."""
    return np.stack([term.values(x_M) - term.at_zero for term in terms], axis=1)


def library(most_power: int = 7, rates: int = 5) -> tuple[Term, ...]:
    """Return the terms that areas are looked for among.

    x^1 ... x^most_power, exp(bx) for b = +-1 ... +-rates, sin(bx) and cos(bx) for b = 1 ... rates.

    Examples:
      >>> len(library(7, 5))
      27
    """
    powers = [Term("power", k) for k in range(1, most_power + 1)]
    exponentials = [Term("exp", sign * b) for b in range(1, rates + 1) for sign in (1, -1)]
    waves = [Term(kind, b) for b in range(1, rates + 1) for kind in ("sin", "cos")]
    return (*powers, *exponentials, *waves)


def _order(term: Term) -> tuple:
    if term == ONE:
        return len(KINDS), 0, 0
    rank = -term.number if term.kind == "power" else abs(term.number)
    return KINDS.index(term.kind), rank, term.number < 0


def _signed(term: Term, value: Fraction) -> str:
    sign, size = "-" if value < 0 else "+", abs(value)
    return sign + ("" if size == 1 and term != ONE else str(size)) + str(term)


def _term(match: re.Match) -> Term:
    if match["kind"]:
        rate = match["rate"]
        return Term(match["kind"], int(f"{rate}1" if rate in ("", "-") else rate))
    if match["basis"]:
        return Term("power", int(match["power"] or 1))
    return ONE


def is_area(formula: Formula, x_M: np.ndarray, area_M: np.ndarray, tolerance: float) -> bool:
    """Say whether a formula has given areas: all |g - G| / (1 + |G|) below the tolerance.

    The verifier of hypotheses: it evaluates them, and knows no calculus.

    Examples:
      >>> x = np.linspace(-1, 1, 5)
      >>> [is_area(Formula.parse(text), x, x**3 / 3, 1e-9) for text in ("1/3x^3", "1/3x^3+1")]
      [True, False]
    """
    error = relative_error(formula, x_M, area_M)
    return math.isfinite(error) and error < tolerance


def relative_error(formula: Formula, x_M: np.ndarray, area_M: np.ndarray) -> float:
    """Return max |g - G| / (1 + |G|) over points; NaN or infinite where the formula is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.max(np.abs(formula.values(x_M) - area_M) / (1 + np.abs(area_M))))
