"""One update of the parameters, and one evaluation, as pure functions to be jitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm import parallel
from jaxllm.train.state import TrainState

# loss(params, batch, key) -> (mean loss over the batch's counted tokens, {"token_count": ..., ...})
LossFunction = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
# view(key) -> (params -> the params that the loss takes, what the optimizer is told was sampled)
View = Callable[[jax.Array], tuple[Callable[[Any], Any], dict[str, jax.Array]]]


def make_train_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    view: View | None = None,
):
    """Return step(state, batch) -> (state, metrics); jit it with the state donated.

    With `accumulate` > 1 the batch is cut into that many parts along its first axis and their
    gradients are summed in float32, weighted by the tokens each counts: the result is the gradient
    of the mean over the whole batch. Part a takes rows a, a+accumulate, ...: rows that a device
    already holds.

    A step whose loss or gradient is not finite changes nothing but `state.failed`, and neither does
    any step after it: the state stays the one from before.

    With a `view` the loss is a function of other parameters, made from the state's by a linear function
    that is drawn once a step (a subnetwork's, `subnetwork.make_view`): gradients of parts are computed and
    summed for those, and transposed once.

    Args:
      loss: (params, batch, key) -> (mean, aux with "token_count").
      optimizer: the chain.
      accumulate: parts a batch is cut into; must divide its first axis.
      view: (key) -> (linear function, sampled); the optimizer's update is called with `sampled=`.

    Returns:
      metrics: loss, grad_norm, failed (scalars, float32 and bool) and token_count.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def gradients(params, batch, key, seen=_everything):
        def of_seen(params):
            return loss(seen(params), batch, key)

        (mean, aux), grads = jax.value_and_grad(of_seen, has_aux=True)(params)
        return mean, aux["token_count"], grads

    def accumulated(params, batch, key, seen):
        small = seen(params)
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
        )

        def add(total, part_and_key):
            mean, count, grads = gradients(small, *part_and_key)
            grads = jax.tree.map(lambda g: g.astype(jnp.float32) * count, grads)
            return jax.tree.map(jnp.add, total, (mean * count, count.astype(jnp.float32), grads)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), small)
        start = (jnp.zeros(()), jnp.zeros(()), zeros)
        (total, count, grads), _ = jax.lax.scan(add, start, (parts, jax.random.split(key, accumulate)))
        scale = 1 / jnp.maximum(count, 1)
        grads = _transpose(seen, params, jax.tree.map(lambda g: g * scale, grads))
        return total * scale, count, grads

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        compute = gradients if accumulate == 1 else accumulated
        seen, extra = _everything, {}
        if view is not None:
            seen, sampled = view(jax.random.fold_in(key, 1))
            extra = {"sampled": sampled}
        mean, count, grads = compute(state.params, batch, key, seen)
        failed = state.failed | ~jnp.isfinite(mean)
        kept = (state.step, state.params, state.opt_state)
        # As one function, so that what lies in the host's memory is fetched and written once.
        kept, (norm, failed) = parallel.streamed(update)(kept, grads, failed, extra)
        state = TrainState(*kept, state.key, failed)
        return state, {"loss": mean, "grad_norm": norm, "failed": failed, "token_count": count}

    def update(kept, grads, failed, extra):
        step, params, opt_state = kept
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        with jax.named_scope("optimizer"):
            updates, new_opt_state = optimizer.update(grads, opt_state, params, **extra)
            new_params = optax.apply_updates(params, updates)
        failed |= ~jnp.isfinite(norm)
        # The select is fused into the update, which reads the old values anyway.
        new = (step + 1, new_params, new_opt_state)
        return jax.tree.map(lambda new, old: jnp.where(failed, old, new), new, kept), (norm, failed)

    return step


def _everything(params):
    return params


def _transpose(linear, params, cotangents):
    """Return the transpose of a linear function of parameters, in the types of the cotangents."""
    like = jax.tree.map(lambda p, g: p.astype(g.dtype), params, cotangents)  # sums are float32 for any type
    return jax.vjp(linear, like)[1](cotangents)[0]


def make_eval_step(loss: LossFunction):
    """Return step(params, batch) -> (sum of the loss over counted tokens, their number), float32."""

    def step(params, batch):
        mean, aux = loss(params, batch, jax.random.key(0))
        count = aux["token_count"].astype(jnp.float32)
        return mean * count, count

    return step
