"""The subnetworks of one stage, as a view of the parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import ModelConfig, check_transformer
from jaxllm.subnetwork.extract import extract
from jaxllm.subnetwork.rates import Rates, layer_probabilities, shrink
from jaxllm.subnetwork.sample import sample, sampled_units
from jaxllm.subnetwork.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Subnetwork:
    """A view of a model, (params, frozen, key) -> smaller params; see `subnetwork`."""

    config: ModelConfig
    rates: Rates
    schedule: Schedule
    axes: Any
    shards: int
    cut: Callable

    def __call__(self, params: Any, frozen: Any, key: jax.Array | None) -> Any:
        """Return the parameters of the subnetwork that a key draws; all of them without one."""
        del frozen
        if key is None:
            return params
        scale = None
        if self.schedule.layer_scale == "inverse":
            scale = jnp.asarray(1 / layer_probabilities(self.config, self.rates), jnp.float32)
        return self.cut(params, self.axes, self._draw(key), scale)

    def optimizer_args(self, key: jax.Array) -> dict[str, Any]:
        """Return which units a key draws, as `mask_unsampled` takes them."""
        return {"sampled": sampled_units(self.config, self._draw(key))}

    def _draw(self, key):
        return _draw(self.config, self.rates, self.schedule, self.shards, key)


def subnetwork(
    config: ModelConfig,
    rates: Rates,
    schedule: Schedule,
    axes: Any,
    *,
    shards: int = 1,
    cut: Callable = extract,
) -> Subnetwork:
    """Return a view of a model that draws one of its subnetworks each step; with any loss.

    Args:
      config: the whole model.
      rates: how much of it is kept.
      schedule: how subnetworks are drawn.
      axes: pytree of logical axis names, structured like the parameters.
      shards: see `sample`.
      cut: `extract`, or `extract_in_turn`.
    """
    return Subnetwork(config, rates, schedule, axes, shards, cut)


def check_schedule(config: ModelConfig, schedule: Schedule, shards: int = 1) -> None:
    """Raise where a model cannot be cut as a schedule says, computing nothing.

    Raises:
      UserError: a rate that does not keep a whole number.
    """
    check_transformer(config, "a schedule of subnetworks")
    for stage in schedule.stages:
        shrink(config, stage.rates)
        jax.eval_shape(lambda rates=stage.rates: _draw(config, rates, schedule, shards, jax.random.key(0)))


def _draw(config, rates, schedule, shards, key):
    options = dict(per_layer=schedule.per_layer, mlp_block=schedule.mlp_block, shards=shards)
    return sample(config, rates, key, **options)
