"""The smallest expression of k that gives some values: found by listing them in order of size."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

POWERS = (-2, -1, 2)


@dataclass(frozen=True)
class Expression:
    """An expression of k, of the leaves k and 1, the operations + - * / and powers -2 to 2."""

    operation: str  # "k", "1", one of + - * /, or ^
    parts: tuple["Expression", ...] = ()
    power: int = 1

    def __str__(self) -> str:
        if not self.parts:
            return self.operation
        written = [f"({part})" if part.parts else str(part) for part in self.parts]
        if self.operation != "^":
            return self.operation.join(written)
        raised = written[0] if abs(self.power) == 1 else f"{written[0]}^{abs(self.power)}"
        return raised if self.power > 0 else f"1/{raised}"

    def __call__(self, k: int) -> Fraction:
        """Return its value at k.

        Raises:
          ZeroDivisionError: it has none.
        """
        if not self.parts:
            return Fraction(k if self.operation == "k" else 1)
        return _combined(self.operation, [part(k) for part in self.parts], self.power)


def _combined(operation: str, values, power: int):
    if operation == "^":
        return values[0] ** power
    left, right = values
    return {"+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right,
            "/": lambda: left / right}[operation]()  # fmt: skip


def smallest_expression(
    places: Sequence[int], values: Sequence[float], tolerance: float = 1e-6, most: int = 5
) -> Expression | None:
    """Return the smallest expression that has given values at given k; None where none is small enough.

    Args:
      places: the k.
      values: at each of them.
      tolerance: largest error.
      most: largest size: leaves and operations.

    Examples:
      >>> str(smallest_expression([1, 2, 3], [1, 1 / 2, 1 / 3]))
      '1/k'
    """
    k, wanted = np.asarray(places, np.float64), np.asarray(values, np.float64)
    by_size: dict[int, list[tuple[Expression, np.ndarray]]] = {}
    seen: set[tuple] = set()
    for size in range(1, most + 1):
        by_size[size] = []
        for expression, at in _of_size(size, by_size, k):
            key = tuple(np.round(at, 9))
            if key in seen or not np.isfinite(at).all():
                continue
            seen.add(key)
            if np.abs(at - wanted).max() < tolerance:
                return expression
            by_size[size].append((expression, at))
    return None


def _of_size(size: int, by_size, k: np.ndarray):
    if size == 1:
        yield Expression("k"), k
        yield Expression("1"), np.ones_like(k)
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        for left in range(1, size - 1):
            for one, x in by_size[left]:
                for other, y in by_size[size - 1 - left]:
                    for operation in "+-*/":
                        yield Expression(operation, (one, other)), _combined(operation, [x, y], 1)
        for inner, x in by_size[size - 1]:
            for power in POWERS:
                yield Expression("^", (inner,), power), _combined("^", [x], power)
