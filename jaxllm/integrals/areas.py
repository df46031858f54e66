"""Areas under curves from 0, in float64: the definition of the integral, and all that is known of it here."""

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.integrals.formulas import Term

# name -> (nodes in [0, 1], weights) of an interval; Simpson's is the composite rule on half steps.
_GAUSS = np.polynomial.legendre.leggauss(6)
RULES = {
    "gauss": ((_GAUSS[0] + 1) / 2, _GAUSS[1] / 2),
    "simpson": (np.array([0.0, 0.5, 1.0]), np.array([1.0, 4.0, 1.0]) / 6),
}
_AT_ONCE = 500  # curves: 12 MB a hundred on 513 points


def float64() -> contextlib.AbstractContextManager:
    """Return a scope in which jax computes in float64; nothing outside of it changes.

    Examples:
      >>> with float64():
      ...     print(jnp.ones(1, jnp.float64).dtype)
      float64
      >>> bool(jax.config.jax_enable_x64)
      False
    """
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def even_grid(low: float, high: float, intervals: int) -> np.ndarray:
    """Return evenly spaced points, float64 [intervals + 1]; one of them must be 0.

    Raises:
      UserError: 0 is not among them: areas begin there.

    Examples:
      >>> even_grid(-1, 1, 4).tolist()
      [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    step = (high - low) / intervals
    before = -low / step
    if not (low <= 0 <= high) or abs(before - round(before)) > 1e-9:
        raise UserError(
            f"the interval {low} to {high} in {intervals} steps does not hold 0, where areas begin; move its "
            "ends or change the number of steps"
        )
    return (np.arange(intervals + 1) - round(before)) * step


def areas(f: Callable[[jax.Array], jax.Array], x_M: np.ndarray, rule: str = "gauss") -> np.ndarray:
    """Return the areas under curves between 0 and each point, float64 [..., M].

    Each interval between neighbouring points is measured by a rule, and intervals are added up from 0 on;
    to the left of it areas have the other sign.

    Args:
      f: elementwise on float64 arrays: [M - 1, nodes] -> the same, or [..., M - 1, nodes] of many curves.
      x_M: points in rising order, 0 among them.
      rule: gauss (6 nodes, the default) or simpson, on half steps.

    Raises:
      UserError: f is not finite somewhere on the interval, or an area is not.

    Examples:
      >>> area = areas(lambda x: x**2, even_grid(-3, 3, 8))
      >>> bool(np.abs(area - even_grid(-3, 3, 8) ** 3 / 3).max() < 1e-13)
      True
    """
    nodes, weights = RULES[rule]
    x_M = np.asarray(x_M, np.float64)
    zero = np.flatnonzero(x_M == 0)
    if len(zero) != 1 or not (np.diff(x_M) > 0).all():
        raise UserError("areas need points in rising order with 0 among them; even_grid makes some")
    at = _places(x_M, nodes)
    with float64():
        values = f(jnp.asarray(at, jnp.float64))
        values = np.broadcast_to(
            np.asarray(values, np.float64), np.broadcast_shapes(at.shape, np.shape(values))
        )
        if not (finite := np.isfinite(values)).all():
            where = float(at[tuple(np.argwhere(~finite)[0][-2:])])
            raise UserError(
                f"the function is not finite at x = {where:.6g}, inside the interval {x_M[0]:g} to "
                f"{x_M[-1]:g}; choose an interval on which it is"
            )
        found = np.asarray(_from_zero(values, weights * np.diff(x_M)[:, None], zero=int(zero[0])))
    if not (finite := np.isfinite(found)).all():
        where = min(x_M[np.argwhere(~finite)[:, -1]], key=abs)
        raise UserError(
            f"the area from 0 to {where:g} is not finite; choose a shorter interval, or a function of "
            "smaller values"
        )
    return found


@functools.partial(jax.jit, static_argnames="zero")
def _from_zero(values: jax.Array, weights: jax.Array, *, zero: int) -> jax.Array:
    """Add intervals up from the point number `zero`, to the right and to the left."""
    pieces = (values * weights).sum(axis=-1)
    right = jnp.cumsum(pieces[..., zero:], axis=-1)
    left = -jnp.cumsum(pieces[..., :zero][..., ::-1], axis=-1)[..., ::-1]
    return jnp.concatenate([left, jnp.zeros_like(pieces[..., :1]), right], axis=-1)


def areas_of_sums(coefficients_NP: np.ndarray, terms: Sequence[Term], x_M: np.ndarray) -> np.ndarray:
    """Return the areas under N sums of the same terms, float64 [N, M].

    Every curve is evaluated and measured; that an area of a sum is a sum of areas is not made use of.

    Args:
      coefficients_NP: of each curve and term.
      terms: what they multiply.
      x_M: as of `areas`.

    Raises:
      UserError: a curve is not finite on the interval.

    Examples:
      >>> areas_of_sums(np.array([[2.0], [4.0]]), [Term("power", 1)], np.array([0.0, 1.0]))
      array([[0., 1.],
             [0., 2.]])
    """
    coefficients_NP = np.asarray(coefficients_NP, np.float64)
    at = _places(np.asarray(x_M, np.float64), RULES["gauss"][0])
    basis_PU = np.stack([term.values(at.ravel()) for term in terms])
    parts = np.array_split(coefficients_NP, -(-len(coefficients_NP) // _AT_ONCE))
    many = lambda rows: areas(lambda x: (rows @ basis_PU).reshape(len(rows), *x.shape), x_M)
    return np.concatenate([many(rows) for rows in parts])


def _places(x_M: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    return x_M[:-1, None] + np.diff(x_M)[:, None] * nodes
