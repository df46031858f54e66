"""Elementary functions as people write them: read safely, evaluated in float64, taken into their parts."""

import ast
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from jaxllm.errors import UserError, brief
from jaxllm.integrals.formulas import ONE, Formula, Term

_FUNCTIONS: dict[str, Callable] = {
    "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh,
    "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "sec": lambda x: 1 / np.cos(x), "csc": lambda x: 1 / np.sin(x), "cot": lambda x: 1 / np.tan(x),
}  # fmt: skip
_NUMBERS = {"pi": np.pi, "E": np.e}
_OPERATIONS = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power,
}  # fmt: skip
_LONGEST = 2000  # characters


def read(text: str) -> ast.expr:
    """Return the tree of an expression of x: + - * / **, whole numbers, pi, E and elementary functions.

    Raises:
      UserError: it is none; names what in it is not known.

    Examples:
      >>> ast.unparse(read("2*x*sqrt(x + 1)"))
      '2 * x * sqrt(x + 1)'
      >>> read("open(x)")
      Traceback (most recent call last):
      jaxllm.errors.UserError: 'open(x)' is no expression of x: 'open(x)' is not known; use + - * / **, ...
    """
    try:
        tree = ast.parse(text if len(text) <= _LONGEST else "", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(
            f"{brief(text)} cannot be read; write an expression of x, such as 2*x*exp(x)"
        ) from None
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if node not in called and not _known(node):
            raise UserError(
                f"{brief(text)} is no expression of x: {brief(ast.unparse(node), 40)} is not known; use "
                f"+ - * / **, numbers, pi, E and {', '.join(_FUNCTIONS)}"
            )
    return tree


def _known(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", None)
        return name in _FUNCTIONS and len(node.args) == 1 and not node.keywords
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float) and abs(node.value) < 1e12
    if isinstance(node, ast.Name):
        return node.id == "x" or node.id in _NUMBERS
    if isinstance(node, ast.BinOp):
        return type(node.op) in _OPERATIONS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub | ast.UAdd)
    return isinstance(node, ast.operator | ast.unaryop | ast.expr_context)


def evaluate(tree: ast.expr, x: np.ndarray) -> np.ndarray:
    """Return the expression at every x, float64; NaN or infinite where it has no value.

    Examples:
      >>> evaluate(read("(x + 1)**(1/2)"), np.array([0.0, 3.0]))
      array([1., 2.])
    """
    with np.errstate(all="ignore"):
        return np.broadcast_to(np.asarray(_value(tree, np.asarray(x, np.float64)), np.float64), np.shape(x))


def _value(node: ast.expr, x: np.ndarray):
    if isinstance(node, ast.Name):
        return x if node.id == "x" else np.float64(_NUMBERS[node.id])
    if isinstance(node, ast.Constant):
        return np.float64(node.value)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, x)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Call):
        return _FUNCTIONS[node.func.id](_value(node.args[0], x))
    left, right = _value(node.left, x), _value(node.right, x)
    if isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant) and node.right.value == 2:
        return left * left
    return _OPERATIONS[type(node.op)](left, right)


def parts(tree: ast.expr) -> list[ast.expr]:
    """Return the distinct parts of an expression in which x stands, the largest first, x itself left out.

    Examples:
      >>> [ast.unparse(part) for part in parts(read("x*sqrt(x + 1)"))]
      ['x * sqrt(x + 1)', 'sqrt(x + 1)', 'x + 1']
    """
    found: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        inside = isinstance(node, ast.BinOp | ast.Call | ast.UnaryOp)
        if inside and any(getattr(one, "id", None) == "x" for one in ast.walk(node)):
            found.setdefault(ast.unparse(node), node)
    return sorted(found.values(), key=lambda node: -len(ast.unparse(node)))


def as_formula(tree: ast.expr) -> Formula | None:
    """Return an expression as a sum of powers, exponentials and waves, multiplied out; None where it is none.

    Examples:
      >>> str(as_formula(read("(x - 1)*(x + 1)**2 + 2*exp(-3*x)")))
      'x^3+x^2-x+2exp(-3x)-1'
      >>> as_formula(read("x*exp(x)")) is None
      True
    """
    if isinstance(tree, ast.Name):
        return Formula.make({Term("power", 1): 1}) if tree.id == "x" else None
    if isinstance(tree, ast.Constant):
        return Formula.make({ONE: Fraction(tree.value)}) if isinstance(tree.value, int) else None
    if isinstance(tree, ast.Call):
        inner = as_formula(tree.args[0])
        if tree.func.id not in ("exp", "sin", "cos") or inner is None or len(inner.terms) != 1:
            return None
        [(term, rate)] = inner.terms
        whole = term == Term("power", 1) and rate.denominator == 1
        return Formula.make({Term(tree.func.id, int(rate)): 1}) if whole else None
    if isinstance(tree, ast.UnaryOp):
        inner = as_formula(tree.operand)
        return inner and _times(inner, Formula.make({ONE: -1 if isinstance(tree.op, ast.USub) else 1}))
    left, right = as_formula(tree.left), as_formula(tree.right)
    if left is None or right is None:
        return None
    number = _number(right)
    match tree.op:
        case ast.Add() | ast.Sub():
            sign = -1 if isinstance(tree.op, ast.Sub) else 1
            return Formula.make([*left.terms, *((term, sign * value) for term, value in right.terms)])
        case ast.Mult():
            return _times(left, right)
        case ast.Div():
            return None if not number else _times(left, Formula.make({ONE: 1 / number}))
        case ast.Pow() if number is not None and number.denominator == 1 and 0 <= number <= 16:
            power: Formula | None = Formula.make({ONE: 1})
            for _ in range(int(number)):
                power = power and _times(power, left)
            return power
    return None


def _times(left: Formula, right: Formula) -> Formula | None:
    pairs = []
    for one, a in left.terms:
        for other, b in right.terms:
            if one.kind == other.kind == "power":
                pairs.append((Term("power", one.number + other.number), a * b))
            elif ONE in (one, other):
                pairs.append((other if one == ONE else one, a * b))
            else:
                return None
    return Formula.make(pairs)


def _number(formula: Formula) -> Fraction | None:
    """Return the number that a formula is; None where x stands in it."""
    return formula.coefficients.get(ONE, Fraction(0)) if all(t == ONE for t, _ in formula.terms) else None
