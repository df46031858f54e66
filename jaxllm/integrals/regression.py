"""From areas to formulas: sparse regression with exact coefficients, which says so where it finds none.

Areas are fitted by all terms of a library at once: what is left over says how noisy they are, and whether
the library holds the function at all (noise is white; what a library cannot say is smooth). Terms are then
dropped, the least significant first, for as long as the loss stays within that noise. Coefficients become
fractions one by one, the surest first, and the others are fitted anew after each: what is known exactly makes
the rest better known. A fraction is accepted only if a number that is none would hardly be so near to one.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.integrals.formulas import Formula, Term, columns, from_zero
from jaxllm.integrals.fractions import nearest_fractions
from jaxllm.integrals.supports import beam_of_supports

_HELD_OUT = 4  # every fourth point is not fitted
_ROUNDING = 3e-15  # of an area, beside the largest one of its curve
_WHITE = 0.3  # of neighbouring residuals, the largest correlation that noise has: six of its deviations
_SURE = 4.5  # standard errors that a coefficient may be off
_CHANCE = 0.02  # of an accidental fraction, at most
# Terms to begin with, the fewest kinds first: what fewer say is said with less doubt.
_NARROW = (("power",), ("power", "exp"), ("power", "sin", "cos"), ("power", "exp", "sin", "cos"))
_WIDTH = 40  # supports of each size that the beam keeps
_MOST_TERMS = 7  # of a formula that the beam looks for
_AT_ONCE = 64  # curves: 10 MB of columns each
_EXACT = 1e-9  # relative: below it residuals are rounding and not noise, and need not be white


Exact = dict[int, Fraction]  # number of a term -> its coefficient


class Fit(NamedTuple):
    """What least squares make of areas under a library, N curves at once."""

    y_NP: np.ndarray  # areas in the library's orthonormal basis
    r_PP: np.ndarray  # triangular: columns of the library in that basis
    sigma_N: np.ndarray  # standard deviation of the noise
    inside_N: np.ndarray  # whether what is left over looks like noise


def regress(areas_NM: np.ndarray, x_M: np.ndarray, terms: Sequence[Term]) -> list[Formula | None]:
    """Return the formula of each curve of areas; None where none is found.

    Args:
      areas_NM: areas from 0 to each point, perhaps with white noise.
      x_M: the points.
      terms: of the library, without the constant: an area is 0 at 0.

    Raises:
      UserError: fewer points than the library needs, or areas that are not finite.

    Examples:
      >>> from jaxllm.integrals.formulas import library
      >>> x = np.linspace(-3, 3, 121)
      >>> inside, outside = np.exp(2 * x) * 1.5 - 1.5 - x**3 / 3, np.arctan(x)
      >>> [str(found) for found in regress(np.stack([inside, outside]), x, library(5, 3))]
      ['-1/3x^3+3/2exp(2x)-3/2', 'None']
    """
    areas_NM, x_M = np.asarray(areas_NM, np.float64), np.asarray(x_M, np.float64)
    held_M = np.arange(len(x_M)) % _HELD_OUT == _HELD_OUT - 1
    if (~held_M).sum() < 2 * len(terms):
        raise UserError(
            f"{len(x_M)} points are too few for {len(terms)} terms; give {3 * len(terms)} or more"
        )
    if not np.isfinite(areas_NM).all():
        raise UserError("some areas are not finite; measure them where the function is")
    fit = fit_library(areas_NM[:, ~held_M], x_M[~held_M], terms)
    inside = np.flatnonzero(fit.inside_N)
    found, rest = {}, inside
    for kinds in _NARROW:
        begin_P = np.array([term.kind in kinds for term in terms])
        if begin_P.any():
            found |= by_dropping(fit, rest, begin_P)
            rest = np.array([row for row in rest if row not in found], np.int64)
    for part in np.array_split(rest, -(-len(rest) // _AT_ONCE)) if len(rest) else ():
        found |= by_beam(fit, part)
    formulas = {
        row: from_zero({terms[p]: value for p, value in exact.items()}) for row, exact in found.items()
    }
    return [
        formulas[row]
        if row in formulas and _fits(formulas[row], x_M[held_M], areas_NM[row, held_M], fit.sigma_N[row])
        else None
        for row in range(len(areas_NM))
    ]


def by_dropping(fit: Fit, rows: np.ndarray, begin_P: np.ndarray) -> dict[int, Exact]:
    """Return what is found by dropping terms one by one, by the curve's number: fast, for clean areas.

    Args:
      fit: of the library.
      rows: which curves.
      begin_P: the terms to begin with.
    """
    kept_NP, found = drop_terms(fit, rows, begin_P), {}
    for size in range(1, kept_NP.shape[1] + 1):
        which = np.flatnonzero(kept_NP.sum(axis=1) == size)
        if len(which):
            chosen = np.nonzero(kept_NP[which])[1].reshape(len(which), size)
            fractions = exact_coefficients(fit, rows[which], chosen)
            found |= {
                int(rows[i]): dict(zip(terms.tolist(), exact, strict=True))
                for i, terms, exact in zip(which, chosen, fractions, strict=True)
                if exact is not None
            }
    return found


def by_beam(fit: Fit, rows: np.ndarray) -> dict[int, Exact]:
    """Return what is found among the likeliest supports of each size, the smallest size first.

    Where two supports of a size have exact coefficients and both explain the areas, nothing is found.
    """
    found, open_rows = {}, set(rows.tolist())
    most = min(_MOST_TERMS, fit.y_NP.shape[1] - 1)
    for chosen, lost in beam_of_supports(fit.y_NP[rows], fit.r_PP, _WIDTH, most):
        within = lost / fit.sigma_N[rows, None] ** 2 <= _most_squares(fit.y_NP.shape[1] - chosen.shape[2])
        within &= np.isin(rows, list(open_rows))[:, None]
        curve, place = np.nonzero(within)
        if not len(curve):
            continue
        supports = chosen[curve, place]
        candidates: dict[int, list[Exact]] = {}
        for i, terms, exact in zip(
            curve, supports.tolist(), exact_coefficients(fit, rows[curve], supports), strict=True
        ):
            if exact is not None:
                candidates.setdefault(int(rows[i]), []).append(dict(zip(terms, exact, strict=True)))
        found |= {row: several[0] for row, several in candidates.items() if len(several) == 1}
        open_rows -= candidates.keys()
    return found


def fit_library(areas_NM: np.ndarray, x_M: np.ndarray, terms: Sequence[Term]) -> Fit:
    """Fit all terms to each curve."""
    phi_MP = columns(terms, x_M)
    scale_P = np.linalg.norm(phi_MP, axis=0)
    q_MP, r_PP = np.linalg.qr(phi_MP / scale_P)
    y_NP = areas_NM @ q_MP
    left_NM = areas_NM - y_NP @ q_MP.T
    y_NP = y_NP + left_NM @ q_MP  # once more: what rounding left behind
    left_NM = areas_NM - y_NP @ q_MP.T
    size_N = np.abs(areas_NM).max(axis=1) + 1e-300
    square_N = (left_NM**2).sum(axis=1)
    sigma_N = np.maximum(np.sqrt(square_N / (len(x_M) - len(terms))), _ROUNDING * size_N)
    correlation_N = (left_NM[:, 1:] * left_NM[:, :-1]).sum(axis=1) / (square_N + 1e-300)
    inside_N = (correlation_N < _WHITE) | (sigma_N < _EXACT * size_N)
    return Fit(y_NP, r_PP * scale_P, sigma_N, inside_N)


def drop_terms(fit: Fit, rows: np.ndarray, begin_P: np.ndarray) -> np.ndarray:
    """Return which of the terms in `begin_P` some curves keep, bool [n, P]; none where all do not suffice.

    The least significant term is dropped again and again, while the squares that all dropped terms explain
    stay within what noise explains: `_most_squares`.
    """
    N, P = len(rows), fit.y_NP.shape[1]
    kept_NP, best_NP = np.tile(begin_P, (N, 1)), np.zeros((N, P), bool)
    open_N = np.arange(N)
    for size in range(int(begin_P.sum()), 0, -1):
        chosen = np.nonzero(kept_NP[open_N])[1].reshape(len(open_N), size)
        w, error, more = solve(fit, rows[open_N], chosen)
        within = more <= _most_squares(P - size)
        best_NP[open_N[within]] = kept_NP[open_N[within]]
        open_N, chosen = open_N[within], chosen[within]
        if not len(open_N):
            break
        weakest = np.argmin(np.abs(w / error)[within], axis=1)
        kept_NP[open_N, chosen[np.arange(len(open_N)), weakest]] = False
    return best_NP


def solve(fit: Fit, rows: np.ndarray, chosen: np.ndarray, known: np.ndarray | None = None):
    """Return (coefficients, their standard errors, squares lost beside all terms, in sigma^2).

    Args:
      fit: of the library.
      rows: which curves, n of them.
      chosen: which terms each is fitted by, int [n, S].
      known: what of the areas is explained already, in the library's basis, [n, P].
    """
    y = fit.y_NP[rows] if known is None else fit.y_NP[rows] - known
    q, r = np.linalg.qr(np.swapaxes(fit.r_PP.T[chosen], 1, 2))
    inverse = np.linalg.inv(r)
    projected = np.einsum("nps,np->ns", q, y)
    w = np.einsum("nst,nt->ns", inverse, projected)
    sigma = fit.sigma_N[rows]
    error = np.linalg.norm(inverse, axis=2) * sigma[:, None]
    lost = y - np.einsum("nps,ns->np", q, projected)
    return w, error, (lost**2).sum(axis=1) / sigma**2


def exact_coefficients(fit: Fit, rows: np.ndarray, chosen: np.ndarray) -> list[tuple[Fraction, ...] | None]:
    """Return fractions for the terms that each curve keeps, of as many terms all; None where one is not sure.

    Args:
      fit: of the library.
      rows: which curves, n of them.
      chosen: which terms, int [n, S].
    """
    n, S = chosen.shape
    known = np.zeros((n, fit.y_NP.shape[1]))
    over, under = np.zeros((n, S), np.int64), np.zeros((n, S), np.int64)
    rest, fine = np.tile(np.arange(S), (n, 1)), np.ones(n, bool)  # places within `chosen` still to be known
    every = np.arange(n)
    for _ in range(S):
        w, error, _ = solve(fit, rows, np.take_along_axis(chosen, rest, axis=1), known)
        near = nearest_fractions(w, _SURE * error + 1e-14 * np.abs(w))
        surest = np.argmin(np.where(near.over == 0, np.inf, near.chance), axis=1)
        fine &= (near.chance[every, surest] < _CHANCE) & (near.over[every, surest] != 0)
        place = rest[every, surest]
        over[every, place], under[every, place] = near.over[every, surest], near.under[every, surest]
        value = over[every, place] / np.maximum(1, under[every, place])
        known += value[:, None] * fit.r_PP.T[chosen[every, place]]
        rest = rest[np.arange(rest.shape[1]) != surest[:, None]].reshape(n, rest.shape[1] - 1)
    lost = ((fit.y_NP[rows] - known) ** 2).sum(axis=1) / fit.sigma_N[rows] ** 2
    fine &= lost <= _most_squares(fit.y_NP.shape[1])
    return [
        tuple(map(Fraction, tops.tolist(), bottoms.tolist())) if good else None
        for tops, bottoms, good in zip(over, under, fine, strict=True)
    ]


def _most_squares(degrees: int) -> float:
    """Return what chi-square of so many degrees hardly exceeds: four deviations, and twelve for few."""
    return degrees + 4 * np.sqrt(2 * degrees) + 12


def _fits(formula: Formula, x_M: np.ndarray, areas_M: np.ndarray, sigma: float) -> bool:
    """Say whether a formula has the areas of points that were not fitted: 1e-6, and six of the noise."""
    error = np.abs(formula.values(x_M) - areas_M)
    return bool((error < 1e-6 * (1 + np.abs(areas_M)) + 6 * sigma).all())
