import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.integrals import areas, even_grid, search_sum
from jaxllm.integrals.written import as_formula, evaluate, read

X = even_grid(0, 1, 96)


def area(text):
    tree = read(text)
    return areas(lambda x: evaluate(tree, np.asarray(x)), X)


@pytest.mark.parametrize(
    "f, closed",
    [
        ("x**2*exp(x)", "(x**2 - 2*x + 2)*exp(x)"),
        ("sqrt(2*x + 1)", "(2*x + 1)**(3/2)/3"),
        ("exp(x)*sin(x)", "exp(x)*(sin(x) - cos(x))/2"),
        ("tan(x)**2", "tan(x) - x"),
    ],
)
def test_sums_of_a_function_s_own_parts_have_its_area(f, closed):
    found = search_sum(f, area(f), X)
    fresh = np.linspace(0.03, 0.97, 11)
    book = evaluate(read(closed), fresh) - evaluate(read(closed), np.zeros(1))
    np.testing.assert_allclose(found.values(fresh), book, rtol=1e-10)


def test_an_area_without_such_a_sum_is_not_found():
    for f in ("exp(x**2)", "sin(exp(x))"):
        assert search_sum(f, area(f), X) is None


def test_what_is_written_is_multiplied_out():
    for text in ("(x - 1)*(3*x**2 + 2*x - 1)**2", "x/2 - 3*sin(2*x) + exp(-x)", "-(x + 1)**3/7"):
        np.testing.assert_allclose(as_formula(read(text)).values(X), evaluate(read(text), X), rtol=1e-12)
    for text in ("exp(x)*sin(x)", "1/x", "x**(1/2)", "exp(x**2)", "sqrt(x)", "exp(x/2)"):
        assert as_formula(read(text)) is None


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "x.real", "y + 1", "lambda: x", "x +", "[x]", "1e300*x", "x if x else 1", "sin*x",
     "exp(sin)", "sin(x)(x)", "x(x)"],
)  # fmt: skip
def test_nothing_but_an_expression_is_read(text):
    with pytest.raises(UserError):
        read(text)
