"""Functions and the formulas of their areas, as texts to translate: splits, labels, files of pairs."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.integrals import (
    Formula,
    Ranges,
    Term,
    areas_of_sums,
    draw_distinct,
    even_grid,
    from_zero,
    library,
    regress,
)

HELD_COEFFICIENT = 7  # of a polynomial's terms: no function that is trained on has it
_AT_ONCE = 10_000  # functions: 40 MB of areas
SIGN = "="  # between a function and its area


def held_out(f: Formula) -> bool:
    """Say whether a function has the coefficient that is kept from training."""
    return any(term.kind == "power" and abs(value) == HELD_COEFFICIENT for term, value in f.terms)


def draw_functions(
    count: int, tests: int, seed: int
) -> tuple[list[Formula], dict[str, list[tuple[str, Formula]]]]:
    """Return functions to train on, and tests by split: random, coefficients, degree 5, degree 6.

    Raises:
      UserError: there are not that many distinct functions.
    """
    draw = np.random.default_rng(seed)
    # Tests first: what is trained on is drawn last, so that more of it leaves the tests as they are.
    splits: dict[str, list[tuple[str, Formula]]] = {"random": [], "coefficients": []}
    pool = draw_distinct(draw, 12 * tests)
    for family, f in pool:
        name = "coefficients" if held_out(f) else "random"
        if len(splits[name]) < tests:
            splits[name].append((family, f))
    for degree in (5, 6):
        ranges = Ranges(least_degree=degree, most_degree=degree)
        there = [
            one for one in draw_distinct(draw, 4 * tests, ["polynomial"], ranges) if not held_out(one[1])
        ]
        splits[f"degree {degree}"] = there[:tests]
    tested = [f for split in splits.values() for _, f in split]
    drawn = draw_distinct(draw, 3 * count, without=tested)
    train = [f for _, f in drawn if not held_out(f)][:count]
    if len(train) < count:
        raise UserError(
            f"only {len(train)} functions to train on are distinct; ask for {len(train)} or fewer"
        )
    return train, splits


def grid_of(interval: float, points: int) -> np.ndarray:
    """Return the points that areas are known at, from -interval to interval."""
    return even_grid(-interval, interval, points)


def measure(functions: Sequence[Formula], x_M: np.ndarray) -> np.ndarray:
    """Return the areas of functions from 0, float64 [N, M]."""
    terms = sorted({term for f in functions for term, _ in f.terms})
    weights = np.array([[float(f.coefficients.get(term, 0)) for term in terms] for f in functions])
    return areas_of_sums(weights, terms, x_M)


def regressed(
    functions: Sequence[Formula], x_M: np.ndarray, most_power: int, rates: int
) -> list[Formula | None]:
    """Return what regression finds for the area of each function."""
    terms, found = library(most_power, rates), []
    for begin in range(0, len(functions), _AT_ONCE):
        found += regress(measure(functions[begin : begin + _AT_ONCE], x_M), x_M, terms)
    return found


def closed_form(f: Formula) -> Formula:
    """Return the area by calculus: what answers are scored by, and the labels of the control.

    Examples:
      >>> str(closed_form(Formula.parse("4x^3-6sin(2x)")))
      'x^4+3cos(2x)-3'
    """
    total: dict[Term, Fraction] = {}
    for term, value in f.terms:
        n = term.number
        if term.kind == "power":
            target, by = Term("power", n + 1), Fraction(1, n + 1)
        else:
            kind = {"exp": "exp", "sin": "cos", "cos": "sin"}[term.kind]
            target, by = Term(kind, n), Fraction(-1 if kind == "cos" else 1, n)
        total[target] = total.get(target, Fraction(0)) + value * by
    return from_zero(total)


def write_pairs(path: Path, pairs: Sequence[tuple[Formula, Formula]]) -> None:
    """Write pairs as rows with a prompt and its completion."""
    rows = [json.dumps({"prompt": f"{f}{SIGN}", "completion": str(g)}) for f, g in pairs]
    content = ("\n".join(rows) + "\n").encode()
    if not path.exists() or path.read_bytes() != content:
        write_file(path, content)
