from math import comb

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.integral_discovery.corpus import closed_form as integral
from jaxllm.errors import UserError
from jaxllm.integrals import FAMILIES, Ranges, areas, draw_distinct, even_grid, library, regress
from jaxllm.integrals.fractions import nearest_fractions
from jaxllm.integrals.supports import beam_of_supports

X = even_grid(-3, 3, 512)
LIBRARY = library(7, 3)


def truth_and_areas(count, seed=0):
    functions = [f for _, f in draw_distinct(np.random.default_rng(seed), count, FAMILIES, Ranges(rates=3))]
    closed = [integral(f) for f in functions]
    return closed, np.stack([g.values(X) for g in closed])


def noisy(areas_NM, noise, seed=1):
    draw = np.random.default_rng(seed)
    return areas_NM + noise * areas_NM.std(axis=1, keepdims=True) * draw.normal(size=areas_NM.shape)


@pytest.mark.parametrize("noise, least", [(0, 1.0), (1e-8, 0.97), (1e-6, 0.97), (1e-4, 0.7)])
def test_formulas_are_found_through_noise_and_never_wrong_ones(noise, least):
    """The pilot's plain rule found .33, .09 and .00 of mixtures at these noises."""
    closed, exact = truth_and_areas(60)
    found = regress(noisy(exact, noise), X, LIBRARY)
    right = np.mean([one == other for one, other in zip(found, closed, strict=True)])
    assert right >= least
    assert not [one for one, other in zip(found, closed, strict=True) if one not in (None, other)]


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-3])
def test_what_the_library_does_not_hold_is_not_found(noise):
    outside = [
        lambda t: 1 / (1 + t**2), lambda t: jnp.sin(6 * t), lambda t: jnp.exp(0.5 * t), lambda t: t**8,
        lambda t: 1 / (4 + t), lambda t: jnp.sqrt(4 + t), lambda t: t * jnp.exp(t), jnp.tanh,
        lambda t: 2.123456789 * t,  # inside, but no fraction
    ]  # fmt: skip
    measured = noisy(np.stack([areas(f, X) for f in outside]), noise)
    assert regress(measured, X, LIBRARY) == [None] * len(outside)


def test_a_square_of_a_cosine_is_found_in_its_other_form():
    [found] = regress(areas(lambda t: jnp.cos(t) ** 2, X)[None], X, LIBRARY)
    assert str(found) == "1/2x+1/4sin(2x)"


@pytest.mark.parametrize("terms, width, most", [(6, 20, 3), (66, 66, 2)])
def test_the_beam_finds_the_best_supports_of_a_size(terms, width, most):
    """Against all supports, by brute force; of more terms than a word has bits, too."""
    from itertools import combinations

    draw = np.random.default_rng(0)
    r = np.linalg.qr(draw.normal(size=(terms, terms)))[1] @ np.diag(draw.normal(size=terms))
    y = draw.normal(size=(2, terms))
    sizes = list(beam_of_supports(y, r, width=width, most=most))
    kept = [(2, min(width, comb(terms, size)), size) for size in range(1, most + 1)]
    assert [chosen.shape for chosen, _ in sizes] == kept
    for chosen, lost in sizes:
        size = chosen.shape[2]
        for n in range(2):
            brute = {}
            for support in combinations(range(terms), size):
                part = r[:, support]
                w = np.linalg.lstsq(part, y[n], rcond=None)[0]
                brute[support] = ((y[n] - part @ w) ** 2).sum()
            best = min(brute, key=brute.get)
            assert tuple(chosen[n, 0]) == best
            found = list(map(tuple, chosen[n].tolist()))
            np.testing.assert_allclose(lost[n], [brute[one] for one in found], rtol=1e-9, atol=1e-12)
            assert len(set(found)) == len(found)


def test_the_simplest_fraction_near_a_number():
    values = np.array([1 / 3, 0.3333, -7 / 4, 5.0, np.pi, 0.0])
    near = nearest_fractions(values, np.array([1e-9, 1e-3, 1e-9, 1e-9, 1e-9, 1e-9]))
    assert near.over.tolist() == [1, 1, -7, 5, 0, 0]
    assert near.under.tolist() == [3, 3, 4, 1, 0, 1]
    assert near.chance[1] > near.chance[0]


@pytest.mark.parametrize(
    "measured, x, says",
    [(np.zeros((1, 30)), X[:30], "too few"), (np.full((1, 513), np.nan), X, "not finite")],
)
def test_areas_that_cannot_be_fitted_are_refused(measured, x, says):
    with pytest.raises(UserError, match=says):
        regress(measured, x, LIBRARY)
