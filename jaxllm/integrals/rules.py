"""Rules of integration found in pairs of functions and regressed areas, and applied to functions never seen.

Of polynomials: a sparse matrix takes coefficients of f to those of its area; what stays of it is put
into expressions of the index. Of exponentials and waves: coefficients are products of powers of a and b.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxllm.integrals.expressions import Expression, smallest_expression
from jaxllm.integrals.formulas import ONE, Formula, Term

_EPSILON = 1e-6  # an entry of the matrix that is smaller is 0
Pair = tuple[Formula, Formula]  # a function and its area


@dataclass(frozen=True)
class PowerRule:
    """a'_k = factor(k) a_place(k): coefficients of a polynomial's area."""

    place: Expression
    factor: Expression

    def __str__(self) -> str:
        return f"a'_k = a_({self.place}) * {self.factor}"


@dataclass(frozen=True)
class TermRule:
    """What of a kind's area is a multiple of one term: sign a^p b^q of it."""

    kind: str  # of the area's term, with the same b; "power": the constant
    sign: int
    p: int
    q: int

    def __str__(self) -> str:
        over = "".join(_power(name, n) for name, n in (("a", self.p), ("b", self.q)) if n > 0) or "1"
        under = "".join(_power(name, -n) for name, n in (("a", self.p), ("b", self.q)) if n < 0)
        value = f"{'-' if self.sign < 0 else '+'} {over}{'/' if under else ''}{under}"
        return value if self.kind == "power" else f"{value} {self.kind}(bx)"


@dataclass(frozen=True)
class Rules:
    """What was found: for powers of x, and for each kind of term a exp(bx), a sin(bx), a cos(bx)."""

    powers: PowerRule | None
    kinds: dict[str, tuple[TermRule, ...]]

    def __str__(self) -> str:
        lines = [] if self.powers is None else [f"polynomials: {self.powers}"]
        lines += [f"a {kind}(bx): {' '.join(map(str, rules))}" for kind, rules in self.kinds.items()]
        return "\n".join(lines)

    def area(self, f: Formula) -> Formula | None:
        """Return the area under a function by the rules; None where they say nothing of a term of it."""
        pairs: list[tuple[Term, Fraction]] = []
        for term, a in f.terms:
            if term.kind == "power":
                target = None if self.powers is None else _target(self.powers, term.number)
                if target is None:
                    return None
                pairs.append((Term("power", target), a * self.powers.factor(target)))
            elif term.kind in self.kinds:
                for rule in self.kinds[term.kind]:
                    value = rule.sign * a**rule.p * Fraction(term.number) ** rule.q
                    pairs.append((ONE if rule.kind == "power" else Term(rule.kind, term.number), value))
            else:
                return None
        return Formula.make(pairs)


def find_rules(pairs: Iterable[Pair]) -> Rules:
    """Return the rules that pairs of a function and its area follow; what is not clear is left out.

    Examples:
      >>> texts = ["2x^2+x+3", "2/3x^3+1/2x^2+3x", "x^2-x", "1/3x^3-1/2x^2", "4x-5", "2x^2-5x"]
      >>> read = [Formula.parse(text) for text in texts]
      >>> rules = find_rules(zip(read[::2], read[1::2], strict=True))
      >>> print(rules)
      polynomials: a'_k = a_(k-1) * 1/k
      >>> str(rules.area(Formula.parse("10x^9")))
      'x^10'
    """
    pairs = list(pairs)
    polynomials = [pair for pair in pairs if all(term.kind == "power" for term, _ in pair[0].terms)]
    kinds = {}
    for kind in ("exp", "sin", "cos"):
        single = [pair for pair in pairs if len(pair[0].terms) == 1 and pair[0].terms[0][0].kind == kind]
        if found := find_term_rules(single):
            kinds[kind] = found
    return Rules(find_power_rule(polynomials), kinds)


def find_power_rule(pairs: Sequence[Pair]) -> PowerRule | None:
    """Return the rule of polynomials: from the matrix of coefficients to expressions of k."""
    if not pairs:
        return None
    from_NJ, to_NK = (coefficient_matrix([pair[side] for pair in pairs]) for side in (0, 1))
    map_JK = sparse_map(from_NJ, to_NK)
    places = np.argwhere(np.abs(map_JK) > _EPSILON)
    if not len(places):
        return None
    j, k = places.T
    place = smallest_expression(k.tolist(), j.tolist())
    factor = smallest_expression(k.tolist(), map_JK[j, k].tolist())
    return None if place is None or factor is None else PowerRule(place, factor)


def coefficient_matrix(polynomials: Sequence[Formula]) -> np.ndarray:
    """Return coefficients of x^0, x^1 ..., float64 [N, degrees]."""
    most = max((term.number for one in polynomials for term, _ in one.terms), default=0)
    found = np.zeros((len(polynomials), most + 1))
    for row, one in enumerate(polynomials):
        for term, value in one.terms:
            found[row, term.number] = float(value)
    return found


def sparse_map(from_NJ: np.ndarray, to_NK: np.ndarray, alpha: float = 1e-3, steps: int = 500) -> np.ndarray:
    """Return M, float64 [J, K], of least ||A M - A'||^2 / N + alpha |M|_1, its surviving entries fitted anew.

    By proximal gradient steps. The second fit takes back what the penalty takes from entries that stay.
    """
    N = len(from_NJ)
    gram, cross = from_NJ.T @ from_NJ / N, from_NJ.T @ to_NK / N
    rate = 1 / (np.linalg.eigvalsh(gram)[-1] + 1e-300)
    map_JK = np.linalg.lstsq(from_NJ, to_NK, rcond=None)[0]
    for _ in range(steps):
        moved = map_JK - rate * (gram @ map_JK - cross)
        map_JK = np.sign(moved) * np.maximum(np.abs(moved) - rate * alpha / 2, 0)
    for column in range(map_JK.shape[1]):
        stays = np.abs(map_JK[:, column]) > 1e-3
        map_JK[:, column] = 0
        if stays.any():
            map_JK[stays, column] = np.linalg.lstsq(from_NJ[:, stays], to_NK[:, column], rcond=None)[0]
    return map_JK


def find_term_rules(pairs: Sequence[Pair]) -> tuple[TermRule, ...]:
    """Return the rules of one kind of term, from functions a KIND(bx) and their areas; or none.

    For each term that areas have, log |value| is fitted by log |a| and log |b|; powers are whole, -2 to 2.
    """
    found: list[TermRule] = []
    if len(pairs) < 4:
        return ()
    a_b = [(float(f.terms[0][1]), float(f.terms[0][0].number)) for f, _ in pairs]
    for kind in ("exp", "sin", "cos", "power"):
        values = []
        for f, g in pairs:
            b = f.terms[0][0].number
            term = ONE if kind == "power" else Term(kind, b)
            values.append(float(g.coefficients.get(term, 0)))
        if any(values):
            rule = _product(kind, a_b, values)
            if rule is None:
                return ()
            found.append(rule)
    return tuple(found)


def _product(kind: str, a_b, values) -> TermRule | None:
    """Return (sign, p, q) with values = sign a^p b^q; None where there is none."""
    if not all(values):
        return None
    a, b = np.abs(np.array(a_b)).T
    features = np.stack([np.log(a), np.log(b)], axis=1)
    p, q = np.rint(np.linalg.lstsq(features, np.log(np.abs(values)), rcond=None)[0]).astype(int).tolist()
    if max(abs(p), abs(q)) > 2:
        return None
    for sign in (1, -1):
        if all(
            math.isclose(sign * x**p * y**q, v, rel_tol=1e-9) for (x, y), v in zip(a_b, values, strict=True)
        ):
            return TermRule(kind, sign, p, q)
    return None


def _target(rule: PowerRule, power: int) -> int | None:
    """Return the k whose place is a power of f."""
    for k in range(power + 5):
        try:
            if rule.place(k) == power:
                rule.factor(k)
                return k
        except ZeroDivisionError:
            continue
    return None


def _power(name: str, n: int) -> str:
    return name if n == 1 else f"{name}^{n}"
