"""The area under any elementary function, looked for among sums of the function's own parts.

A function's parts (what stands in its brackets, its roots, its exponentials), the logarithm, root, arc
tangent and neighbouring powers of each, and products of these with x: a few dozen columns, of which at most
five may have a coefficient, each a fraction that is no accident. No derivative is taken to choose them.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxllm.integrals.regression import Fit, exact_coefficients
from jaxllm.integrals.supports import beam_of_supports
from jaxllm.integrals.written import evaluate, parts, read

_MOST_COLUMNS = 60  # of a library: a step of the beam costs their square
_MOST_TERMS = 5
_WIDTH = 60  # supports of each size that are kept
_ERROR = 2e-13  # of measured areas, beside the largest
_NEVER = ("asin(x)", "acos(x)", "atan(x)", "asinh(x)")  # what no part of an algebraic function shows
_CONJUGATE = {"sin": "cos", "cos": "sin", "sinh": "cosh", "cosh": "sinh", "sec": "tan", "tan": "sec"}


@dataclass(frozen=True)
class Sum:
    """A sum of expressions, less its value at 0."""

    terms: tuple[tuple[str, Fraction], ...]

    def __str__(self) -> str:
        written = " + ".join(f"{value}*({text})" for text, value in self.terms)
        return f"[{written}] from 0"

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the sum at every x, float64."""
        return sum(float(value) * _column(text, x) for text, value in self.terms)


def search_sum(text: str, areas_M: np.ndarray, x_M: np.ndarray) -> Sum | None:
    """Return a sum that has a function's areas; None where none of few terms does.

    Args:
      text: the function, as `written.read` reads it.
      areas_M: its areas from 0, without noise.
      x_M: where.

    Raises:
      UserError: text that cannot be read.

    Examples:
      >>> from jaxllm.integrals import areas, even_grid
      >>> x = even_grid(0, 1, 128)
      >>> tree = read("x*exp(2*x)")
      >>> str(search_sum("x*exp(2*x)", areas(lambda t: evaluate(tree, t), x), x))
      '[1/2*(x * exp(2 * x)) + -1/4*(exp(2 * x))] from 0'
    """
    areas_M, x_M = np.asarray(areas_M, np.float64), np.asarray(x_M, np.float64)
    texts, phi_MP = usable_columns(candidates(text), x_M)
    size = np.abs(areas_M).max()
    if not texts or not size:
        return None
    norms = np.linalg.norm(phi_MP, axis=0)
    q_MP, r_PP = np.linalg.qr(phi_MP / norms)
    y = areas_M @ q_MP
    outside = float(((areas_M - q_MP @ y) ** 2).sum())  # what no sum of these columns reaches
    error = _ERROR * size
    bound = len(x_M) * error**2
    if outside > bound:
        return None
    fit = Fit(y[None], r_PP * norms, np.array([error]), np.array([True]))
    for chosen, lost in beam_of_supports(fit.y_NP, fit.r_PP, _WIDTH, min(_MOST_TERMS, len(texts))):
        near = np.flatnonzero(lost[0] + outside <= bound)
        found = exact_coefficients(fit, np.zeros(len(near), np.int64), chosen[0, near]) if len(near) else []
        for terms, exact in zip(chosen[0, near], found, strict=True):
            if exact is not None:
                return Sum(tuple((texts[p], value) for p, value in zip(terms, exact, strict=True)))
    return None


def candidates(text: str) -> list[str]:
    """Return the expressions that an area may be a sum of, the likeliest first.

    Examples:
      >>> candidates("exp(x)*sin(x)")[:4]
      ['exp(x) * sin(x)', 'exp(x) * cos(x)', 'exp(x)', 'sin(x)']
    """
    own = [ast.unparse(part) for part in parts(read(text))]
    atoms: list[str] = []
    for part in parts(read(text)):
        atoms += _relatives(part)
    fractional = [k for k in ("1/2", "3/2", "5/2") if any("sqrt(x)" in one or "** (" in one for one in own)]
    powers = ["x", "x**2", "x**3", "x**4", "x**5", *(f"x**({k})" for k in fractional)]
    known = [*_NEVER] if any("sqrt" in one or "/" in one for one in own) else []
    with_x = [f"{power} * ({atom})" for power in ("x", "x**2", "x**3", "1/x") for atom in atoms]
    return list(dict.fromkeys([*atoms, *powers, *with_x[: len(atoms)], *known, *with_x[len(atoms) :]]))


def usable_columns(texts: Sequence[str], x_M: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the expressions that have finite, distinct values, less those at 0, and their columns [M, P]."""
    kept: list[str] = []
    columns: list[np.ndarray] = []
    for text in texts:
        column = _column(text, x_M)
        if not np.isfinite(column).all() or np.abs(column).max() < 1e-9 or np.abs(column).max() > 1e9:
            continue
        unit = column / np.linalg.norm(column)
        if any(abs(unit @ other) > 1 - 1e-13 for other in columns):
            continue
        kept.append(text)
        columns.append(unit)
        if len(kept) == _MOST_COLUMNS:
            break
    return kept, np.stack([_column(text, x_M) for text in kept], axis=1) if kept else np.zeros((len(x_M), 0))


def _column(text: str, x: np.ndarray) -> np.ndarray:
    tree = read(text)
    with np.errstate(all="ignore"):
        return evaluate(tree, x) - evaluate(tree, np.zeros(1))


def _relatives(part: ast.expr) -> list[str]:
    """Return a part and what may stand for it in an area."""
    text = ast.unparse(part)
    if isinstance(part, ast.Call):
        inner, name = ast.unparse(part.args[0]), part.func.id
        other = _CONJUGATE.get(name)
        more = [f"{other}({inner})"] if other else []
        if name == "tan":
            more += [f"log(cos({inner}))", f"tan({inner})**2", f"tan({inner})**3"]
        if name in ("sin", "cos"):
            more += [f"{name}({inner})**{n}" for n in (2, 3)]
            more += [f"sin({n} * ({inner}))" for n in (2, 4)] + [f"cos(2 * ({inner}))"]
        if name == "sqrt":
            more += [f"({inner})**(3/2)", f"({inner})**(5/2)", f"({inner})**(-1/2)"]
        if name == "log":
            more += [f"log({inner})**2"]
        return [text, *more]
    if isinstance(part, ast.BinOp):
        if isinstance(part.op, ast.Pow):
            base, power = ast.unparse(part.left), ast.unparse(part.right)
            return [text, *(f"({base})**({power} + {n})" for n in (1, -1, 2)), f"({base})**({power} + 3)"]
        if isinstance(part.op, ast.Mult):
            return [text, *_conjugates(part)]
        if isinstance(part.op, ast.Add | ast.Sub):
            return [f"log({text})", f"({text})**(-1)", f"({text})**(-2)", f"atan({text})", text]
        if isinstance(part.op, ast.Div):
            return [text]
    return [text]


def _conjugates(product: ast.expr) -> list[str]:
    """Return a product with one of its waves turned into the other."""
    text, found = ast.unparse(product), []
    for name, other in _CONJUGATE.items():
        changed = re.sub(rf"\b{name}\(", f"{other}(", text, count=1)
        found += [changed] if changed != text else []
    return found
