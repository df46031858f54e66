"""One update of the parameters, and one evaluation, as pure functions to be jitted."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal

from jaxllm import parallel
from jaxllm.errors import UserError
from jaxllm.train.state import TrainState
from jaxllm.train.task import LossFunction, View, check_loss


def make_train_step(
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    views: Sequence[View] = (),
):
    """Return step(state, batch) -> (state, metrics); jit it with the state donated.

    With `accumulate` > 1 the batch is cut into that many parts along its first axis and their
    gradients are summed in float32, weighted by the tokens each counts: the result is the gradient
    of the mean over the whole batch. Part a takes rows a, a+accumulate, ...: rows that a device
    already holds.

    A step whose loss or gradient is not finite changes nothing but `state.failed`, and neither does any
    step after it: the state stays the one from before. A step whose new parameters are not finite, or that
    puts NaN into the optimizer's state, fails too, but this is known (`sound`) only when they have been
    written over the old ones: to know before would take a second copy of the state, or the update twice.
    `train` makes the state from before again. (A state in the host's memory is not tested: see `is_sound`.)

    The loss is a function of what the views make of the parameters. They are drawn once a step: gradients of
    parts are computed and summed for what they return, and pulled back through them once.

    Args:
      loss: (params, batch, key) -> (mean, sums); see `LossFunction`.
      optimizer: the chain.
      accumulate: parts a batch is cut into; must divide its first axis.
      views: (params, frozen, key) -> params, one applied to what the one before returned; see `View`.

    Returns:
      metrics: loss, grad_norm, token_count, failed (scalars, float32 and bool), and sound unless some of the
      state is in the host's memory.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def gradients(params, batch, key, seen, given=None):
        def of_seen(params):
            return _call(loss, seen(params), params if given is None else given, batch, key)

        (mean, aux), grads = jax.value_and_grad(of_seen, has_aux=True)(params)
        return mean, jnp.asarray(aux["token_count"], jnp.float32), grads

    def accumulated(params, batch, key, seen):
        # What no parameter decides (frozen weights, random keys) gets no gradient to be summed.
        leaves, structure = jax.tree.flatten(seen(params))
        decided = _depends(lambda params: jax.tree.leaves(seen(params)), params)
        small = _where(decided, leaves)

        def whole(small):
            given = iter(small)
            return jax.tree.unflatten(
                structure, [next(given) if yes else x for x, yes in zip(leaves, decided, strict=True)]
            )

        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
        )

        def add(total, part_and_key):
            mean, count, grads = gradients(small, *part_and_key, whole, given=params)
            grads = jax.tree.map(lambda g: g.astype(jnp.float32) * count, grads)
            return jax.tree.map(jnp.add, total, (mean * count, count, grads)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), small)
        start = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), zeros)
        (total, count, grads), _ = jax.lax.scan(add, start, (parts, jax.random.split(key, accumulate)))
        scale = 1 / jnp.where(count == 0, 1, count)  # weights may sum to less than 1
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)  # sums are float32 for any type
        fixed, pull_back = jax.vjp(lambda wide: _where(decided, jax.tree.leaves(seen(wide))), wide)
        [grads] = pull_back([(g * scale).astype(x.dtype) for g, x in zip(grads, fixed, strict=True)])
        return total * scale, count, grads

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        compute = gradients if accumulate == 1 else accumulated
        of_views = jax.random.fold_in(key, 2**32 - 1)  # a loss folds small numbers in: its layers and places
        keys = [jax.random.fold_in(of_views, number) for number in range(len(views))]
        extra = {}
        for view, view_key in zip(views, keys, strict=True):
            extra |= view.optimizer_args(view_key) if hasattr(view, "optimizer_args") else {}
        seen = functools.partial(see, views, state.frozen, keys)
        mean, count, grads = compute(state.params, batch, key, seen)
        failed = state.failed | ~jnp.isfinite(mean)
        kept = (state.step, state.params, state.opt_state)
        # Fetched from the host's memory a second time to be tested, a state would cost as much again.
        in_host_memory = any(map(parallel.on_host, jax.tree.leaves(kept)))
        # As one function, so that what lies in the host's memory is fetched and written once.
        kept, (norm, failed) = parallel.streamed(update)(kept, grads, failed, extra)
        # The barrier: fused with the update, the test of each number would be an array in memory.
        tested = {} if in_host_memory else {"sound": _is_sound(*jax.lax.optimization_barrier(kept[1:]))}
        failed |= ~tested.get("sound", jnp.array(True))
        state = TrainState(*kept, state.key, failed, state.frozen)
        return state, {"loss": mean, "grad_norm": norm, "failed": failed, "token_count": count} | tested

    def update(kept, grads, failed, extra):
        step, params, opt_state = kept
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        failed |= ~jnp.isfinite(norm)
        # optax itself mixes types: counts with decays, float32 updates with bfloat16 parameters.
        with jax.named_scope("optimizer"), jax.numpy_dtype_promotion("standard"):
            updates, new_opt_state = optimizer.update(grads, opt_state, params, **extra)
            new = (step + 1, optax.apply_updates(params, updates), new_opt_state)
        # A sum of gradients is float32, and must not widen what is kept of bfloat16 parameters. The select is
        # fused into the update, which reads the old values anyway.
        new = jax.tree.map(lambda new, old: jax.lax.convert_element_type(new, old.dtype), new, kept)
        return jax.tree.map(lambda new, old: jnp.where(failed, old, new), new, kept), (norm, failed)

    return step


@jax.jit
def is_sound(params, opt_state) -> jax.Array:
    """Return whether training can go on from a state, wherever it lies."""
    return parallel.streamed(lambda kept, state: (kept, _is_sound(*state)))((), (params, opt_state))[1]


def _is_sound(params, opt_state):
    """Infinities may be an optimizer's (the best loss so far); a NaN never is."""
    bad = [~jnp.isfinite(x) for x in jax.tree.leaves(params)]
    bad += [jnp.isnan(x) for x in jax.tree.leaves(opt_state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [~jnp.any(x) for x in bad])


def see(views: Sequence[View], frozen, keys: Sequence[jax.Array | None], params):
    """Return what views make of parameters, one after the other."""
    for view, key in zip(views, keys, strict=True):
        params = view(params, frozen, key)
    return params


def make_eval_step(loss: LossFunction, views: Sequence[View] = ()):
    """Return step(params, frozen, batch) -> (sum of the loss over what is counted, its number), float32.

    The sum is the loss function's `loss_sum`, or its mean times its count where it has none.
    """

    def step(params, frozen, batch):
        mean, sums = _call(loss, see(views, frozen, [None] * len(views), params), params, batch, None)
        count = jnp.asarray(sums["token_count"], jnp.float32)
        if "loss_sum" in sums:
            mean = sums["loss_sum"] / jnp.where(count == 0, 1, count)
        return mean * count, count

    return step


def _where(chosen: Sequence[bool], leaves: Sequence[Any]) -> list:
    return [x for x, yes in zip(leaves, chosen, strict=True) if yes]


def _depends(function, params) -> list[bool]:
    """Return of each array that a function returns in a list whether its argument decides it."""
    traced = jax.make_jaxpr(function)(params).jaxpr
    reached = set(traced.invars)

    def is_reached(x):
        return not isinstance(x, Literal) and x in reached

    for equation in traced.eqns:
        if any(map(is_reached, equation.invars)):
            reached.update(equation.outvars)
    return [is_reached(x) for x in traced.outvars]


def _names(tree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _call(loss, seen, params, batch, key):
    """Return what a loss returns, checked.

    Raises:
      UserError: it returns something else than (mean, sums), or cannot take what the views returned.
    """
    try:
        returned = loss(seen, batch, key)
    except UserError:
        raise  # it says what is wrong, whatever views did
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if jax.tree.structure(seen) == jax.tree.structure(params):
            raise
        before, after = (set(_names(tree)) for tree in (params, seen))
        changed = sorted(before ^ after, key=str) or ["its structure"]
        raise UserError(
            f"a view changed the tree of parameters ({', '.join(changed)[:120]}), and the loss cannot take "
            f"what it returns ({type(error).__name__}: {error}); let the view return what the loss reads"
        ) from error
    check_loss(returned)
    return returned
