import numpy as np
import pytest

from experiments.integral_discovery.corpus import closed_form as integral
from jaxllm.integrals import FAMILIES, Formula, Ranges, draw_distinct, find_rules, regress
from jaxllm.integrals.expressions import smallest_expression
from tests.integrals.test_regression import LIBRARY, X


def test_rules_found_up_to_degree_4_hold_beyond_it():
    functions = [f for _, f in draw_distinct(np.random.default_rng(0), 80, FAMILIES, Ranges(rates=3))]
    found = regress(np.stack([integral(f).values(X) for f in functions]), X, LIBRARY)
    rules = find_rules((f, g) for f, g in zip(functions, found, strict=True) if g is not None)
    assert str(rules).splitlines() == [
        "polynomials: a'_k = a_(k-1) * 1/k",
        "a exp(bx): + a/b exp(bx) - a/b",
        "a sin(bx): - a/b cos(bx) + a/b",
        "a cos(bx): + a/b sin(bx)",
    ]
    unseen = Ranges(least_degree=5, most_degree=9, rates=12, most_coefficient=40)
    for _, f in draw_distinct(np.random.default_rng(1), 60, FAMILIES, unseen):
        assert rules.area(f) == integral(f)


def test_pairs_that_follow_no_rule_give_none():
    draw = np.random.default_rng(0)
    parse = lambda text: Formula.parse(text)
    pairs = [(parse(f"{draw.integers(1, 9)}x^2"), parse(f"{draw.integers(1, 9)}x^3")) for _ in range(9)]
    pairs += [(parse(f"{n}exp({n}x)"), parse(f"{n * n + 1}exp({n}x)")) for n in range(2, 9)]
    rules = find_rules(pairs)
    assert rules.powers is None and not rules.kinds
    assert rules.area(parse("x")) is None and rules.area(parse("exp(x)")) is None


@pytest.mark.parametrize(
    "values, says",
    [([1, 2, 3, 4], "k"), ([1, 1 / 4, 1 / 9, 1 / 16], "1/k^2"), ([1 / 2, 1 / 3, 1 / 4, 1 / 5], "1/(k+1)"),
     ([1, 2, 3, 4.1], "None"), ([0, 2, 6, 12], "k*(k-1)")],
)  # fmt: skip
def test_the_smallest_expression(values, says):
    found = smallest_expression([1, 2, 3, 4], values)
    if found is None:
        assert says == "None"
    else:
        assert [float(found(k)) for k in (1, 2, 3, 4)] == pytest.approx(values)
        assert len(str(found)) <= len(says)
