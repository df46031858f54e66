"""What the contract suite runs: a registry of optimizers, and the problem that each must solve."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jaxllm.optim import (
    adamw_bf16_sr,
    kahan_compensate,
    mask_unsampled,
    orthoadam,
    orthoadam_bf16_sr,
    scale_by_adam_low_precision,
    stochastic_round,
    with_master_weights,
)


class Case(NamedTuple):
    make: Callable[[float], optax.GradientTransformation]  # of the learning rate
    learning_rate: float
    dtype: str = "float32"  # of the parameters


# One leaf a target, so that one compilation serves all; and axes that a 4 x 2 mesh divides.
SHAPES = {"matrix": (16, 8), "parabola": (16,), "rosenbrock": (2, 8)}
AXES = {"matrix": ("embed", "mlp"), "parabola": ("embed",), "rosenbrock": ("vocab", "mlp")}
SPECS = {
    "matrix": PartitionSpec("a", "b"),
    "parabola": PartitionSpec("a"),
    "rosenbrock": PartitionSpec(None, "b"),
}


def adam_then(*links):
    """Return learning rate -> chain(Adam, learning rate, links)."""
    return lambda rate: optax.chain(scale_by_adam_low_precision(), optax.scale_by_learning_rate(rate), *links)


# A new link is one line here.
OPTIMIZERS = {
    "adamw_bf16_sr": Case(lambda rate: adamw_bf16_sr(rate, weight_decay=0.0), 0.02, "bfloat16"),
    "scale_by_adam_low_precision": Case(adam_then(), 0.02),
    "stochastic_round": Case(adam_then(stochastic_round()), 0.02, "bfloat16"),
    "kahan_compensate": Case(adam_then(kahan_compensate()), 0.02, "float16"),
    "with_master_weights": Case(lambda rate: with_master_weights(optax.adam(rate)), 0.02, "bfloat16"),
    "orthoadam": Case(lambda rate: orthoadam(rate, AXES, weight_decay=0.0), 0.02),
    "mask_unsampled": Case(lambda rate: mask_unsampled(optax.adam(rate), AXES), 0.02),
    "orthoadam_bf16_sr": Case(lambda rate: orthoadam_bf16_sr(rate, AXES, weight_decay=0.0), 0.02, "bfloat16"),
    "optax.adamw": Case(optax.adamw, 0.02),
    "optax.lion": Case(optax.lion, 0.01),
    "optax.sgd": Case(lambda rate: optax.sgd(rate, momentum=0.9), 0.01),
}


def start(dtype):
    """Return the parameters to start from."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    params["rosenbrock"] = np.stack([np.full(8, -0.5), np.linspace(-0.5, 0.5, 8)])
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


def losses(params):
    """Return the loss of each target, float32: 0 at the minimum."""
    params = {name: value.astype(jnp.float32) for name, value in params.items()}
    x, y = params["rosenbrock"]
    # Least squares of condition number 16, in a basis that no axis is part of.
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0] * np.linspace(0.25, 1, 16)
    return {
        "matrix": jnp.sum(jnp.square(basis.T.astype(np.float32) @ (params["matrix"] - 2))),
        "parabola": jnp.sum(jnp.square(params["parabola"] - 1)),
        "rosenbrock": jnp.sum(jnp.square(1 - x) + 10 * jnp.square(y - x**2)),
    }


@jax.jit
def gradient(params):
    """Return the gradient, of the parameters' types."""
    return jax.grad(lambda p: sum(losses(p).values()))(params)


def make_step(optimizer):
    """Return the jitted (params, state, gradient) -> (params, state); extra arguments do no harm."""
    if not isinstance(optimizer, optax.MultiSteps):
        optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params, value=0.0, unheard_of=None)
        return optax.apply_updates(params, updates), state

    return step


def descend(optimizer, params, steps):
    """Return the parameters after so many steps, each in a call of its own."""
    step, state = make_step(optimizer), optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state, gradient(params))
    return params


@functools.cache
def plain(name, steps):
    """Return where an optimizer of the registry gets to by itself."""
    case = OPTIMIZERS[name]
    return descend(case.make(case.learning_rate), start(case.dtype), steps)
