"""Ways to find a hybrid's mixture beside its weights, which Manticore's code compares."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optax

from experiments.shared.epochs import Arrays, alternate_halves, epochs
from jaxllm.adapt import GumbelMixture
from jaxllm.models import HybridConfig, LanguageModel
from jaxllm.optim import exponentiated_gradient, search_mixture


class Search(NamedTuple):
    """How a mixture is found while all else is trained."""

    update: Callable[[float], optax.GradientTransformation] = optax.adam  # of mixtures, by its rate
    alternating: bool = False  # weights at even steps, mixtures at odd ones
    held_out: bool = False  # mixtures on a half of the training set that weights do not see
    gumbel: bool = False  # mixtures are seen with Gumbel noise

    def batches(self, rows: Arrays, batch_size: int, seed: int) -> Iterator[Arrays]:
        """Yield the batches of its steps without end."""
        return (alternate_halves if self.held_out else epochs)(rows, batch_size, seed)

    def views(self, axes: Any) -> tuple:
        """Return how it sees parameters."""
        return (GumbelMixture(axes),) if self.gumbel else ()


SEARCHES = {
    "simultaneous": Search(),
    "alternating": Search(alternating=True),
    "held out": Search(alternating=True, held_out=True),
    "GAEA": Search(exponentiated_gradient),
    "DASH": Search(gumbel=True),
}


def make_optimizer(
    weights: optax.GradientTransformation, model: LanguageModel, axes: Any, search: Search | None, rate: float
) -> optax.GradientTransformation:
    """Return an optimizer of a model's weights and, if it is a hybrid, of its mixture.

    Args:
      search: None: the mixture stays as it is.
      rate: of the mixture.
    """
    if not isinstance(model, HybridConfig):
        return weights
    if search is None:
        return search_mixture(weights, None, axes)
    return search_mixture(weights, search.update(rate), axes, alternate=search.alternating)
