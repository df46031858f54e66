"""Hybrids of MAD's parts: how their mixtures are searched, given, read and rounded."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxllm.adapt import GumbelMixture
from jaxllm.models import HybridConfig, LanguageModel, mixture, with_mixture
from jaxllm.optim import exponentiated_gradient, search_mixture

_GAEA = 10.0  # times the rate of the others, as the paper's runs have it


class Search(NamedTuple):
    """How a mixture is found while all else is trained."""

    optimizer: Callable[[float], optax.GradientTransformation] = optax.adam
    alternating: bool = False  # weights at even steps, mixtures at odd ones
    held_out: bool = False  # mixtures on a half of the training set that weights do not see
    gumbel: bool = False  # mixtures are seen with Gumbel noise


SEARCHES = {
    "simultaneous": Search(),
    "alternating": Search(alternating=True),
    "held out": Search(alternating=True, held_out=True),
    "GAEA": Search(lambda rate: exponentiated_gradient(_GAEA * rate)),
    "DASH": Search(gumbel=True),
}


def hybrid(parts: Sequence[LanguageModel], blocks: int) -> HybridConfig:
    """Return the hybrid of parts of one width, without projectors, as the paper's proxies are.

    Its new tables begin as the parts' own would.
    """
    return HybridConfig(parts=tuple(parts), blocks=blocks, projector="none", init_std=parts[0].init_std)


def with_given(init: Callable[[jax.Array], Any], alphas: np.ndarray) -> Callable[[jax.Array], Any]:
    """Return an initialiser that begins with a given mixture, [blocks, parts]."""
    return lambda key: _put(init(key), lambda hybrid: with_mixture(hybrid, alphas))


def mixture_of(params: Any) -> np.ndarray:
    """Return a solver's mixture, [blocks, parts]."""
    return mixture(params.get("model", params))


def rounded(params: Any) -> Any:
    """Return a solver's parameters with all of each block's weight on its heaviest part."""
    alphas_NK = mixture_of(params)
    return _put(params, lambda hybrid: with_mixture(hybrid, np.eye(alphas_NK.shape[1])[alphas_NK.argmax(1)]))


def _put(params, change):
    """Change the hybrid of a solver, whose parameters may hold a decoder beside it."""
    return params | {"model": change(params["model"])} if "model" in params else change(params)


def views_of(axes: Any, search: Search) -> tuple:
    """Return how a search sees parameters."""
    return (GumbelMixture(axes),) if search.gumbel else ()


def optimizer_of(
    axes: Any, weights: optax.GradientTransformation, search: Search | None, rate: float
) -> optax.GradientTransformation:
    """Return the optimizer of a hybrid; without a search its mixture stays as it is."""
    if search is None:
        return search_mixture(weights, optax.set_to_zero(), axes)
    return search_mixture(weights, search.optimizer(rate), axes, alternate=search.alternating)
