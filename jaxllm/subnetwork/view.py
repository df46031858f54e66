"""The subnetworks of one stage, as `train.make_train_step` wants them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import ModelConfig
from jaxllm.subnetwork.extract import extract
from jaxllm.subnetwork.rates import Rates, layer_probabilities, shrink
from jaxllm.subnetwork.sample import sample, sampled_units
from jaxllm.subnetwork.schedule import Schedule


def make_view(
    config: ModelConfig,
    rates: Rates,
    schedule: Schedule,
    axes: Any,
    *,
    shards: int = 1,
    cut: Callable = extract,
) -> Callable[[jax.Array], tuple[Callable, dict[str, jax.Array]]] | None:
    """Return key -> (params -> smaller params, units sampled); None where everything is kept.

    Args:
      config: the whole model.
      rates: how much of it the stage keeps.
      schedule: how subnetworks are drawn.
      axes: pytree of logical axis names, structured like the parameters.
      shards: see `sample`.
      cut: `extract`, or `extract_in_turn`.
    """
    if rates == Rates():
        return None
    scale = None
    if schedule.layer_scale == "inverse":
        scale = jnp.asarray(1 / layer_probabilities(config, rates), jnp.float32)

    def view(key):
        indices = _draw(config, rates, schedule, shards, key)
        small_of = partial(cut, axes=axes, indices=indices, branch_scale=scale)
        return small_of, sampled_units(config, indices)

    return view


def check_schedule(config: ModelConfig, schedule: Schedule, shards: int = 1) -> None:
    """Raise where a model cannot be cut as a schedule says, computing nothing.

    Raises:
      UserError: a rate that does not keep a whole number.
    """
    for stage in schedule.stages:
        shrink(config, stage.rates)
        jax.eval_shape(lambda rates=stage.rates: _draw(config, rates, schedule, shards, jax.random.key(0)))


def _draw(config, rates, schedule, shards, key):
    options = dict(per_layer=schedule.per_layer, mlp_block=schedule.mlp_block, shards=shards)
    return sample(config, rates, key, **options)
