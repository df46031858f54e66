"""Many short trainings of a few models: a program for each model and way of search, shared by seeds and arms.

The loop of `jaxllm.train` compiles a step a run; here rates are arguments, and what is frozen has rate 0.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.epochs import Arrays
from experiments.shared.mixture_searches import SEARCHES, Search, make_optimizer
from jaxllm import models
from jaxllm.models import HybridConfig, LanguageModel

RATES = dict.fromkeys(SEARCHES, 0.05) | {"GAEA": 0.1, "DASH": 0.005}  # of mixtures, as in the paper's runs


def tune(
    config: LanguageModel,
    params: dict,
    batches: Iterator[Arrays],
    steps: int,
    rate: float,
    *,
    search: str | None = None,
    parts: float = 1.0,
    schedule: Callable[[int], float] | None = None,
    seed: int = 0,
) -> tuple[dict, list[dict[str, Any]]]:
    """Return (the parameters after some steps, mixtures on the way); AdamW, the gradient's norm at most 1.

    Args:
      rate: of the first step; it falls to 0 in a line, or as `schedule` says.
      search: the name of one; None: a mixture stays as it is.
      parts: times the rate for a hybrid's parts; 0 trains projectors and tables alone.
      schedule: step -> rate.
      seed: of what a search draws.
    """
    how = search and SEARCHES[search]._replace(held_out=False)  # of batches alone
    begin, step = _program(config, how, RATES.get(search, 0.0))
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
def _program(config: LanguageModel, search: Search | None, mixture_rate: float):
    axes = models.axes(config)
    weights = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0))
    optimizer = make_optimizer(weights, config, axes, search, mixture_rate)
    views = search.views(axes) if search else ()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch, rate, parts, key):
        def loss(params):
            for view in views:
                params = view(params, None, key)
            return models.loss(config, params, batch["tokens"], batch["targets"])[0]

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        rates = {name: rate * parts if name == "parts" else rate for name in updates} | {"mixture": 1.0}
        updates = {name: jax.tree.map(lambda x: x * rates[name], tree) for name, tree in updates.items()}  # noqa: B023
        return optax.apply_updates(params, updates), state

    return jax.jit(optimizer.init), step
