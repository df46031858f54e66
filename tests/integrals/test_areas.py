import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.integral_discovery.corpus import closed_form as integral
from jaxllm.errors import UserError
from jaxllm.integrals import FAMILIES, Formula, areas, areas_of_sums, draw_distinct, even_grid
from jaxllm.integrals.areas import float64

X = even_grid(-3, 3, 512)
KNOWN = {
    "power": (lambda t: t**4, lambda x: x**5 / 5),
    "exp": (lambda t: jnp.exp(2 * t), lambda x: np.expm1(2 * x) / 2),
    "sin": (lambda t: jnp.sin(5 * t), lambda x: (1 - np.cos(5 * x)) / 5),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("rule, tolerance", [("gauss", 1e-13), ("simpson", 1e-7)])
def test_areas_are_those_of_closed_forms(name, rule, tolerance):
    """On both sides of 0; Simpson's error is that of its order, and no rounding."""
    f, closed = KNOWN[name]
    error = np.abs(areas(f, X, rule) - closed(X)).max()
    assert error < tolerance
    assert rule == "gauss" or error > 1e-11


def test_float64_ends_with_its_scope():
    with float64():
        assert jnp.ones(1, jnp.float64).dtype == jnp.float64
    assert not jax.config.jax_enable_x64
    areas(lambda t: t, X)
    assert jnp.ones(1, jnp.float32).dtype == jnp.asarray(np.ones(1)).dtype == jnp.float32


def test_sums_of_terms_have_the_areas_of_each_curve():
    functions = [f for _, f in draw_distinct(np.random.default_rng(0), 12, FAMILIES)]
    terms = sorted({term for f in functions for term, _ in f.terms})
    weights = np.array([[float(f.coefficients.get(term, 0)) for term in terms] for f in functions])
    found = areas_of_sums(weights, terms, X)
    for row, f in zip(found, functions, strict=True):
        closed = integral(f).values(X)
        assert np.abs(row - closed).max() < 1e-12 * np.abs(closed).max()


@pytest.mark.parametrize(
    "f, x, says",
    [
        (lambda t: 1 / t, even_grid(-1, 1, 2), "is not finite at x = 0"),
        (lambda t: jnp.log(t), even_grid(-1, 1, 2), "inside the interval -1 to 1"),
        (lambda t: 1e308 + 0 * t, even_grid(-1, 4, 5), "area from 0 to 2 is not finite"),
        (lambda t: 1e308 + 0 * t, even_grid(-4, 1, 5), "area from 0 to -2 is not finite"),
        (lambda t: t, np.array([1.0, 2.0]), "0 among them"),
        (lambda t: t, np.array([1.0, 0.0]), "rising order"),
    ],
)
def test_what_has_no_area_is_told_in_a_sentence(f, x, says):
    with pytest.raises(UserError, match=says):
        areas(f, x, "simpson")


def test_an_interval_without_0_is_refused():
    with pytest.raises(UserError, match="does not hold 0"):
        even_grid(-1, 2, 4)


def test_a_formula_reads_back_and_nonsense_does_not():
    for _, f in draw_distinct(np.random.default_rng(1), 40):
        assert Formula.parse(str(integral(f))) == integral(f)
    for text in ("", "3x^", "--x", "x+", "3/0x", "2exp(x)x", "/3x", "x^1234567890", "exp()", "1//2"):
        assert Formula.parse(text) is None
