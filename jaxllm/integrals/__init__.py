"""Integrals from areas alone: float64 areas, exact sparse regression, rules that carry over.

Start with `areas(f, even_grid(-3, 3, 512))`, then `regress`: each curve's formula, or None.

    x = even_grid(-3, 3, 512)
    [found] = regress(areas(lambda t: 3 * jnp.exp(2 * t), x)[None], x, library(7, 5))    # 3/2exp(2x)-3/2
    rules = find_rules((f, g) for f, g in pairs)                                        # a'_k = a_(k-1) * 1/k
    rules.area(Formula.parse("10x^9-2sin(7x)"))

`search_sum` looks for the area of any elementary function among sums of its own parts; `is_area` is the
verifier of what a model writes. No calculus is used anywhere. Yin, Automated Discovery of Integral with Deep
Learning (arXiv 2402.18040).
"""

from jaxllm.integrals.areas import areas, areas_of_sums, even_grid, float64
from jaxllm.integrals.families import FAMILIES, Ranges, draw_distinct, draw_function
from jaxllm.integrals.formulas import ONE, Formula, Term, from_zero, is_area, library, relative_error
from jaxllm.integrals.regression import regress
from jaxllm.integrals.rules import Rules, find_rules
from jaxllm.integrals.search import search_sum

__all__ = [
    "FAMILIES",
    "Formula",
    "ONE",
    "Ranges",
    "Rules",
    "Term",
    "areas",
    "areas_of_sums",
    "draw_distinct",
    "draw_function",
    "even_grid",
    "find_rules",
    "float64",
    "from_zero",
    "is_area",
    "library",
    "regress",
    "relative_error",
    "search_sum",
]
