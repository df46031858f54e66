"""The optimizer of a run, as values: which optax transformation, its schedule, decay and clipping."""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import optax

from jaxllm.config import Config, CountOrZero, Fraction, NotNegative, Range
from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.optim.check_chain import must_be_last
from jaxllm.optim.decay import decay_mask
from jaxllm.optim.low_precision_adam import adamw_bf16_sr
from jaxllm.optim.rotate import orthoadam, orthoadam_bf16_sr
from jaxllm.optim.schedules import ScheduleName, make_schedule

# What a run offers to the function that builds its optimizer.
_OFFERED = ("learning_rate", "b1", "b2", "eps", "weight_decay", "mask", "axes")
_OWN = {build.__name__: build for build in (adamw_bf16_sr, orthoadam, orthoadam_bf16_sr)}


@dataclass(frozen=True)
class OptimConfig(Config):
    """Values from which `make_optimizer` builds the chain clip -> optimizer(schedule).

    Raises:
      UserError: no such optimizer, or a value out of range.

    Examples:
      >>> OptimConfig(name="adamx")
      Traceback (most recent call last):
      jaxllm.errors.UserError: unknown optimizer 'adamx'; did you mean 'adamax'? Known: adabelief, ...
    """

    # an optax optimizer (adamw, lion, ...), adamw_bf16_sr, orthoadam, orthoadam_bf16_sr, or
    # "package.module:function"
    name: str = "adamw"
    learning_rate: NotNegative = 6e-4  # the peak
    schedule: ScheduleName = "cosine"
    warmup_steps: CountOrZero = 100
    final_fraction: Fraction = 0.1  # learning rate at the end, as a fraction of the peak
    decay_fraction: Fraction = 0.2  # wsd only: how much of the run decays
    weight_decay: NotNegative = 0.1  # on matrices only, decoupled; by optimizers that decay (adam does not)
    beta1: Annotated[float, Range(0, below=1)] = 0.9
    beta2: Annotated[float, Range(0, below=1)] = 0.95
    eps: NotNegative = 1e-8
    clip_norm: NotNegative = 1.0  # largest global gradient norm; 0: no clipping

    _prefix = "optim."

    def __post_init__(self):
        super().__post_init__()
        _find(self.name)

    @property
    def decays(self) -> bool:
        """Whether weights decay: weight_decay is not 0, and the optimizer has a place for it."""
        accepted = inspect.signature(_find(self.name)).parameters
        # adafactor's weight_decay_rate, which a function of the user's is not offered
        own = "weight_decay_rate" in accepted and ":" not in self.name
        return self.weight_decay > 0 and ("weight_decay" in accepted or own)

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
    where weights decay) and axes (logical axis names) that its signature names. Optimizers of optax whose own
    decay is of every array, of the gradient, or not times the learning rate (novograd, lars, adadelta,
    adafactor) get a link with the run's in its place.

    Args:
      config: see OptimConfig.
      steps: optimizer steps of the whole run, for the schedule.
      axes: pytree of logical axis names, structured like the parameters.

    Examples:
      >>> axes = {"w": ("embed", "mlp"), "gain": ("embed",)}
      >>> optimizer = make_optimizer(OptimConfig(name="lion"), steps=1000, axes=axes)
    """
    schedule, mask = config.make_schedule(steps), decay_mask(axes)
    offered = {
        "learning_rate": schedule,
        "b1": config.beta1,
        "b2": config.beta2,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "mask": mask,
        "axes": axes,
    }
    build = _find(config.name)
    accepted = inspect.signature(build).parameters
    replaced = config.decays and "mask" not in accepted and ":" not in config.name
    if replaced:
        offered["weight_decay"] = 0.0
    optimizer = build(**{k: v for k, v in offered.items() if k in accepted})
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise UserError(
            f"optim.name '{config.name}' returned {brief(optimizer, 40)}; expected a gradient "
            "transformation, with init and update, as optax.chain returns"
        )
    if replaced:
        decay = optax.add_decayed_weights(lambda step: -config.weight_decay * schedule(step), mask)
        optimizer = optax.chain(optimizer, decay)
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


@functools.cache
def keeps_small_updates(name: str) -> bool:
    """Say whether an optimizer of this name rounds its updates so that none is lost on average.

    It does where a link of its chain lands on values of the weights' type: stochastic rounding, Kahan
    compensation, master weights.

    Examples:
      >>> keeps_small_updates("adamw"), keeps_small_updates("adamw_bf16_sr")
      (False, True)
    """
    optimizer = make_optimizer(OptimConfig(name=name, clip_norm=0.0), steps=1, axes={"w": ("embed",)})
    weights = {"w": jax.ShapeDtypeStruct((8,), "bfloat16")}
    return must_be_last(jax.eval_shape(optimizer.init, weights)) is not None


def _find(name: str) -> Callable:
    """Return the function that builds an optimizer.

    Raises:
      UserError: there is none of this name, or it cannot be called with what a run offers.
    """
    if ":" in name:
        return _import(name)
    if name not in _named():
        raise unknown("optimizer", name, _named())
    _check_update(name)
    return _named()[name]


@functools.cache
def _check_update(name: str) -> None:
    """Check that an optimizer's update asks for no more than gradients, as lbfgs's line search does."""
    build = _named()[name]
    offered = {"learning_rate": 0.1, "mask": {"w": True}, "axes": {"w": ("embed",)}}
    optimizer = build(**{k: v for k, v in offered.items() if k in inspect.signature(build).parameters})
    weights = {"w": jax.ShapeDtypeStruct((8,), "float32")}
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes types
            jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)
    except TypeError as error:
        raise UserError(
            f"optimizer '{name}' needs more than gradients ({bare(error, 200)}); choose another one"
        ) from error


@functools.cache
def _named() -> dict[str, Callable]:
    optimizers = {n: getattr(optax, n) for n in dir(optax) if n[0].islower()} | _OWN
    return {n: build for n, build in optimizers.items() if _takes_learning_rate(build)}


def _import(name: str) -> Callable:
    module, _, function = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module of the user's: its code may raise anything
        raise UserError(
            f"optim.name '{bare(name, 80)}' cannot be imported ({type(error).__name__}: {bare(error, 200)}); "
            "give an optax optimizer or an importable package.module:function"
        ) from error
    if not callable(build) or not _can_be_called(build):
        raise UserError(
            f"optim.name '{bare(name, 80)}' is {brief(build, 40)}; expected a function of some of "
            f"{', '.join(_OFFERED)} that returns a gradient transformation"
        )
    return build


def _takes_learning_rate(candidate) -> bool:
    if not inspect.isfunction(candidate) or candidate.__name__.startswith("scale_by"):
        return False
    return "learning_rate" in inspect.signature(candidate).parameters and _can_be_called(candidate)


def _can_be_called(build) -> bool:
    """Say whether a function needs no argument that a run does not offer, and can be meant for one."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):  # built into Python, without a signature
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in variadic}
    meant = inspect.isfunction(build) or any(p.name in _OFFERED for p in parameters)
    return needed <= set(_OFFERED) and meant
