"""Many short trainings of a few models: a program for each model and way of search, shared by seeds and arms.

The loop of `jaxllm.train` compiles a step a run; here rates are arguments, and what is frozen has rate 0.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.epochs import Arrays
from jaxllm import models
from jaxllm.adapt import GumbelMixture
from jaxllm.models import HybridConfig, LanguageModel
from jaxllm.optim import exponentiated_gradient, search_mixture


class Search(NamedTuple):
    """How a mixture is found beside the weights."""

    mixture: Callable[[float], optax.GradientTransformation] = optax.adam
    rate: float = 0.05
    alternate: bool = False
    held_out: bool = False
    gumbel: bool = False


SEARCHES = {
    "darts": Search(),
    "darts alternating": Search(alternate=True),
    "darts held out": Search(alternate=True, held_out=True),
    "dash": Search(rate=0.005, gumbel=True),
    "gaea": Search(exponentiated_gradient, rate=0.1),
}


def tune(
    config: LanguageModel,
    params: dict,
    batches: Iterator[Arrays],
    steps: int,
    rate: float,
    *,
    search: Search | None = None,
    parts: float = 1.0,
    schedule: Callable[[int], float] | None = None,
    seed: int = 0,
) -> tuple[dict, list[dict[str, Any]]]:
    """Return (the parameters after some steps, mixtures on the way); AdamW, the gradient's norm at most 1.

    Args:
      rate: of the first step; it falls to 0 in a line, or as `schedule` says.
      search: None: a mixture stays as it is.
      parts: times the rate for a hybrid's parts; 0 trains projectors and tables alone.
      schedule: step -> rate.
      seed: of what a search draws.
    """
    begin, step = _program(config, search)
    params, curve = jax.tree.map(jnp.array, params), []  # a copy, which steps use up
    state, noted = begin(params), max(1, steps // 20)
    for index in range(steps):
        now = np.float32(schedule(index) if schedule else rate * (1 - index / steps))
        key = jax.random.fold_in(jax.random.key(seed), index)
        params, state = step(params, state, next(batches), now, np.float32(parts), key)
        if isinstance(config, HybridConfig) and (index + 1) % noted == 0:
            curve.append({"step": index + 1, "alphas": models.mixture(params).tolist()})
    return params, curve


@functools.lru_cache(maxsize=32)
def _program(config: LanguageModel, search: Search | None):
    axes = models.axes(config)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0))
    if isinstance(config, HybridConfig):
        found = optax.set_to_zero() if search is None else search.mixture(search.rate)
        optimizer = search_mixture(optimizer, found, axes, alternate=bool(search and search.alternate))
    view = GumbelMixture(axes) if search and search.gumbel else lambda params, frozen, key: params

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch, rate, parts, key):
        def loss(params):
            return models.loss(config, view(params, None, key), batch["tokens"], batch["targets"])[0]

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        rates = {name: rate * parts if name == "parts" else rate for name in updates} | {"mixture": 1.0}
        updates = {name: jax.tree.map(lambda x: x * rates[name], tree) for name, tree in updates.items()}  # noqa: B023
        return optax.apply_updates(params, updates), state

    return jax.jit(optimizer.init), step
