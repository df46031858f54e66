"""The optimizer of a run, as values: which optax transformation, its schedule, decay and clipping."""

import importlib
import inspect
from dataclasses import dataclass

import optax

from jaxllm.errors import UserError, unknown
from jaxllm.optim.decay import decay_mask
from jaxllm.optim.low_precision_adam import adamw_bf16_sr
from jaxllm.optim.rotate import orthoadam
from jaxllm.optim.schedules import ScheduleName, make_schedule

_OWN = {"adamw_bf16_sr": adamw_bf16_sr, "orthoadam": orthoadam}


@dataclass(frozen=True)
class OptimConfig:
    """Values from which `make_optimizer` builds the chain clip -> optimizer(schedule).

    Raises:
      UserError: no such optimizer, or a value out of range.

    Examples:
      >>> OptimConfig(name="adamx")
      Traceback (most recent call last):
      jaxllm.errors.UserError: unknown optimizer 'adamx'; did you mean 'adamax'? Known: adabelief, ...
    """

    # an optax optimizer (adamw, lion, ...), adamw_bf16_sr, orthoadam, or "package.module:function"
    name: str = "adamw"
    learning_rate: float = 6e-4  # the peak
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.1  # learning rate at the end, as a fraction of the peak
    decay_fraction: float = 0.2  # wsd only: how much of the run decays
    weight_decay: float = 0.1  # on matrices only, decoupled
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0  # largest global gradient norm; 0: no clipping

    def __post_init__(self):
        for field in ("learning_rate", "weight_decay", "clip_norm", "eps"):
            if getattr(self, field) < 0:
                raise UserError(f"optim.{field} is {getattr(self, field)}; it must not be negative")
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"optim.{field} is {getattr(self, field)}; it must be in [0, 1)")
        _find(self.name)

    def make_schedule(self, steps: int) -> optax.Schedule:
        """Return the learning rate as a function of the step, for a run of so many steps."""
        return make_schedule(
            self.schedule,
            peak=self.learning_rate,
            steps=steps,
            warmup_steps=self.warmup_steps,
            final_fraction=self.final_fraction,
            decay_fraction=self.decay_fraction,
        )


def make_optimizer(config: OptimConfig, steps: int, axes) -> optax.GradientTransformation:
    """Build the optimizer of a run.

    `config.name` is an optimizer of optax or of this package, or "package.module:function" for a
    chain of your own.
    Either is called with those of learning_rate (a schedule), b1, b2, eps, weight_decay, mask (True
    where weights decay) and axes (logical axis names) that its signature names.

    Args:
      config: see OptimConfig.
      steps: optimizer steps of the whole run, for the schedule.
      axes: pytree of logical axis names, structured like the parameters.

    Examples:
      >>> axes = {"w": ("embed", "mlp"), "gain": ("embed",)}
      >>> optimizer = make_optimizer(OptimConfig(name="lion"), steps=1000, axes=axes)
    """
    offered = {
        "learning_rate": config.make_schedule(steps),
        "b1": config.beta1,
        "b2": config.beta2,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "mask": decay_mask(axes),
        "axes": axes,
    }
    build = _find(config.name)
    accepted = inspect.signature(build).parameters
    optimizer = build(**{k: v for k, v in offered.items() if k in accepted})
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def _find(name):
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"optim.name '{name}' cannot be imported ({error}); "
                "give an optax optimizer or an importable package.module:function"
            ) from error
    optimizers = {n: getattr(optax, n) for n in dir(optax) if n[0].islower()} | _OWN
    optimizers = {n: build for n, build in optimizers.items() if _takes_learning_rate(build)}
    if name not in optimizers:
        raise unknown("optimizer", name, optimizers)
    return optimizers[name]


def _takes_learning_rate(candidate):
    if not inspect.isfunction(candidate) or candidate.__name__.startswith("scale_by"):
        return False
    return "learning_rate" in inspect.signature(candidate).parameters
