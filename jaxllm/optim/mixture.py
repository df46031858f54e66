"""Search of mixture weights beside a model's own: what differentiable architecture search does to its logits.

Mixtures are logits whose axis is named "mixture" (a hybrid's, [blocks, parts]); their weights are
alpha = softmax(logits). DARTS (Liu et al., arXiv 1806.09055) is Adam on the logits, GAEA (Li et al., arXiv
2004.07802) an exponentiated gradient of the weights:

    optimizer = search_mixture(optax.adamw(2e-4), optax.adam(0.01), axes)                      # DARTS
    optimizer = search_mixture(optax.adamw(2e-4), exponentiated_gradient(0.1), axes, alternate=True)

DASH's soft Gumbel-softmax is a view of parameters, `jaxllm.adapt.GumbelMixture`. With `alternate=True` and
batches that alternate between training and held-out text, the mixture is found on what the weights never
learn from.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.axis_names import is_names
from jaxllm.errors import UserError


def search_mixture(
    weights: optax.GradientTransformation,
    mixture: optax.GradientTransformation | None,
    axes: Any,
    *,
    alternate: bool = False,
) -> optax.GradientTransformation:
    """Train a model's parameters and its mixtures, each by its own optimizer.

    Args:
      weights: of everything else.
      mixture: of arrays with an axis "mixture"; None: they stay as they are.
      axes: logical axis names, structured like the parameters.
      alternate: weights move at even steps alone and mixtures at odd ones; what rests keeps its moments.

    Raises:
      UserError: nothing has such an axis.

    Examples:
      >>> axes = {"w": ("embed",), "logits": ("blocks", "mixture")}
      >>> params = {"w": jnp.ones(2), "logits": jnp.zeros((1, 2))}
      >>> optimizer = search_mixture(optax.sgd(1.0), optax.sgd(1.0), axes, alternate=True)
      >>> updates, _ = optimizer.update(params, optimizer.init(params))
      >>> float(updates["w"][0]), float(jnp.sum(updates["logits"]))
      (-1.0, 0.0)
    """
    labels = jax.tree.map(
        lambda names: "mixture" if "mixture" in names else "weights", axes, is_leaf=is_names
    )
    if "mixture" not in jax.tree.leaves(labels):
        raise UserError("no array has an axis named 'mixture'; search the mixture of a hybrid's parameters")
    mixture = optax.set_to_zero() if mixture is None else mixture
    if alternate:
        weights = optax.conditionally_mask(weights, lambda step: step % 2 == 0)
        mixture = optax.conditionally_mask(mixture, lambda step: step % 2 == 1)
    return optax.multi_transform({"weights": weights, "mixture": mixture}, labels)


class ExponentiatedGradientState(NamedTuple):
    """The state of `exponentiated_gradient`."""

    count: jax.Array  # int32 []: updates so far


def exponentiated_gradient(
    learning_rate: optax.ScalarOrSchedule, floor: float = 1e-5, bound: float = 9.0
) -> optax.GradientTransformation:
    """Move mixtures by a multiplicative update of their weights on the simplex (GAEA), given as logits.

        alpha <- alpha * exp(clip(-learning_rate * g, -bound, bound)), floored, divided by its sum

    g is the gradient of alpha. Of logits' gradient it is known up to a constant, which only the clip would
    see: g = (gradient of a logit) / alpha, whose mean over the mixture is 0.

    Args:
      learning_rate: a number, or a schedule.
      floor: the least weight.
      bound: of the exponent.

    Examples:
      >>> optimizer, logits = exponentiated_gradient(1.0), jnp.zeros((1, 2))
      >>> state = optimizer.init(logits)
      >>> for _ in range(3):  # the loss is alpha's first entry
      ...     gradients = jax.grad(lambda logits: jax.nn.softmax(logits)[0, 0])(logits)
      ...     updates, state = optimizer.update(gradients, state, logits)
      ...     logits = optax.apply_updates(logits, updates)
      ...     print(f"{jax.nn.softmax(logits)[0, 0]:.3f}")
      0.269
      0.119
      0.047

    References:
      Li et al., Geometry-Aware Gradient Algorithms for Neural Architecture Search, arXiv 2004.07802.
    """

    def init(params):
        del params
        return ExponentiatedGradientState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def move(gradient, logits):
            alpha = jnp.maximum(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), floor)
            step = jnp.clip(-rate * gradient.astype(jnp.float32) / alpha, -bound, bound)
            new = jax.nn.softmax(jnp.log(alpha) + step, axis=-1)
            new = jnp.maximum(new, floor)
            new = jnp.log(new / jnp.sum(new, axis=-1, keepdims=True))
            return (new - logits.astype(jnp.float32)).astype(logits.dtype)

        return jax.tree.map(move, updates, params), ExponentiatedGradientState(state.count + 1)

    return optax.GradientTransformation(init, update)
