"""gplearn, an engine of genetic programming, on the same areas: what a general search finds."""

from collections.abc import Sequence

import numpy as np

from jaxllm.errors import UserError
from jaxllm.integrals import Formula


def check_installed() -> None:
    """Check that the rival is there.

    Raises:
      UserError: gplearn is not installed.
    """
    try:
        import gplearn.genetic  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the rival needs gplearn ({error}); pip install 'jaxllm[studies]', or give --rival-curves 0"
        ) from error


def evolve(
    areas_NM: np.ndarray,
    x_M: np.ndarray,
    truths: Sequence[Formula],
    *,
    population: int,
    generations: int,
    seed: int,
) -> dict[str, float]:
    """Return the share of curves whose evolved program has their areas within 1e-6 and 1e-2, on fresh points.

    Raises:
      UserError: gplearn is not installed.
    """
    check_installed()
    from gplearn.functions import make_function
    from gplearn.genetic import SymbolicRegressor

    exponential = make_function(function=lambda x: np.exp(np.clip(x, -20, 20)), name="exp", arity=1)
    fresh_M = (x_M[:-1] + x_M[1:]) / 2
    errors = []
    for area_M, truth in zip(areas_NM, truths, strict=True):
        search = SymbolicRegressor(
            population_size=population, generations=generations, const_range=(-10.0, 10.0), random_state=seed,
            function_set=("add", "sub", "mul", "div", "sin", "cos", exponential),
            parsimony_coefficient=1e-3, stopping_criteria=1e-9,
        )  # fmt: skip
        search.fit(x_M[:, None], area_M)
        wanted = truth.values(fresh_M)
        errors.append(np.max(np.abs(search.predict(fresh_M[:, None]) - wanted) / (1 + np.abs(wanted))))
    return {
        f"within {tolerance:g}": float(np.mean(np.array(errors) < tolerance)) for tolerance in (1e-6, 1e-2)
    }
