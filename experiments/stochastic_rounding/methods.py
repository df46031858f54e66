"""The methods that stochastic rounding is compared with, and what a step of each costs."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import optax

from jaxllm import targets
from jaxllm.models import PRESETS, get_preset
from jaxllm.optim import OptimConfig, kahan_compensate, scale_by_adam_low_precision
from jaxllm.parallel import MeshConfig
from jaxllm.targets import Forecast
from jaxllm.targets.forecast_cache import cached_forecast
from jaxllm.targets.train_step import with_vocabulary
from jaxllm.text import TrainConfig, prepare_shapes


class Method(NamedTuple):
    """What a method trains with."""

    precision: str  # of jaxllm.train.PRECISIONS
    optimizer: str  # OptimConfig.name

    def of(self, run: TrainConfig) -> TrainConfig:
        """Return a run, trained with this method."""
        optim = dataclasses.replace(run.optim, name=self.optimizer)
        return dataclasses.replace(run, precision=self.precision, optim=optim)


METHODS = {
    "float32": Method("float32", "adamw"),
    "mixed_o1": Method("mixed_o1", "adamw"),
    "mixed_o2": Method("mixed_o2", "adamw"),
    "bf16_nearest": Method("bfloat16", "experiments.stochastic_rounding.methods:adamw_bf16_nearest"),
    "bf16_sr": Method("bfloat16", "adamw_bf16_sr"),  # the same links with stochastic_round last, fused
    "bf16_kahan": Method("bfloat16", "experiments.stochastic_rounding.methods:adamw_bf16_kahan"),
}
MODELS = PRESETS | {"gpt-neo-6.7b": get_preset("gpt-neo-2.7b", num_layers=32, embed_dim=4096, num_heads=32)}


def _adamw_bf16(last, learning_rate, b1, b2, eps, weight_decay, mask):
    return optax.chain(
        scale_by_adam_low_precision(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
        last(),
    )


adamw_bf16_nearest = partial(_adamw_bf16, optax.identity)  # optax.apply_updates rounds to nearest
adamw_bf16_kahan = partial(_adamw_bf16, kahan_compensate)


def bytes_per_parameter(run: TrainConfig) -> float:
    """Return what a run keeps for each parameter: weight, gradient and the optimizer's state."""
    run = with_vocabulary(run)
    shapes = prepare_shapes(run).shapes
    kept = jax.tree.leaves((shapes.params, shapes.params, shapes.opt_state))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept) / run.model.num_params


def compile_step(method: str, model: str, machine: str, batch_size: int) -> Forecast:
    """Compile a training step, its parameters split over all of a machine's devices, or look it up.

    Sequences are as long as the model's context, and every layer is rematerialised.

    Raises:
      UserError: the machine's compiler is not installed.
    """
    target, shape = targets.get_target(machine), MODELS[model]
    run = TrainConfig(
        model=dataclasses.replace(shape, remat="full"), seq_len=shape.context_length, batch_size=batch_size,
        isolate_documents=False, optim=OptimConfig(), mesh=MeshConfig(1, target.num_devices, 1),
    )  # fmt: skip
    return cached_forecast(METHODS[method].of(run), target)
