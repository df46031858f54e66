"""Integrals by calculus: the reference that the library itself must not have."""

from fractions import Fraction

from jaxllm.integrals import Formula, Term, from_zero


def integral(f: Formula) -> Formula:
    """Return the area of a function, in closed form."""
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
