"""How much of the update that an optimizer wants reaches the weights, in training and without."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxllm import models
from jaxllm.optim import make_optimizer
from jaxllm.optim.master_weights import MasterWeightsState
from jaxllm.text import TextRun, next_token_loss
from jaxllm.train.checkpoint import Checkpoints


def captured(old, wanted, new) -> tuple[jax.Array, jax.Array]:
    """Return how much of a wanted update a step made, as two float32 scalars.

    The first is the fraction of the parameters that changed at all. The second is the progress,
    <new - old, wanted> / <wanted, wanted>: 1 where the whole update was made, or is on average.

    Args:
      old: parameters before the step, a pytree of any float types.
      wanted: the update before it was rounded, float32.
      new: parameters after the step.

    Examples:
      >>> old, wanted = jnp.ones(2, jnp.bfloat16), jnp.array([0.003, 0.005])  # the next is 1 + 1/128
      >>> changed, progress = captured(old, wanted, optax.apply_updates(old, wanted))
      >>> float(changed), round(float(progress), 3)
      (0.5, 1.149)
    """
    made = jax.tree.map(jnp.subtract, _float32(new), _float32(old))
    leaves = jax.tree.leaves(made)
    changed = sum(jnp.count_nonzero(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return changed, optax.tree.vdot(made, wanted) / optax.tree.vdot(wanted, wanted)


def wanted_update(optimizer: optax.GradientTransformation, grads, opt_state, params):
    """Return the float32 update that an optimizer would give weights in float32, were they here.

    Links that round leave float32 weights alone, so this is the same optimizer on a wider copy.

    Args:
      optimizer: the chain, without its master weights if it has any.
      grads: structured like the parameters.
      opt_state: of the chain, or of `with_master_weights` around it.
      params: of any float types.
    """
    if isinstance(opt_state, MasterWeightsState):
        grads, opt_state = _float32(grads), opt_state.inner
    wide = _float32(params)
    jax.eval_shape(optimizer.init, wide)  # links refuse types that no init was given
    return optimizer.update(grads, opt_state, wide)[0]


def observe_writes(job: TextRun) -> list[dict[str, float]]:
    """Take one more step of training from each checkpoint of a finished run, and see what it writes.

    Args:
      job: the run, with a schedule of its own and a checkpoint every `save_every` steps and at its end.

    Returns:
      one dict a checkpoint, in order: step, learning_rate (of that next step), changed and progress
      (see `captured`).
    """
    run, loss = job.config, next_token_loss(job.config)
    optimizer = make_optimizer(run.optim, run.steps, models.axes(job.model))
    # Apart from the update, so that one program serves every rate.
    gradient = jax.jit(jax.grad(lambda params, batch: loss(params, batch, None)[0]))
    wanted = jax.jit(partial(wanted_update, optimizer))
    writes = []
    with Checkpoints(Path(run.out, "checkpoints"), keep_last=run.keep_last, keep_best=run.keep_best) as kept:
        for step in sorted({*range(run.save_every, run.steps, run.save_every), run.steps}):
            state, position = kept.restore(step, job.shapes)
            batches = job.batches()
            batches.restore(position)
            batch, old = job.put(next(batches)), jax.tree.map(jnp.copy, state.params)
            update = wanted(gradient(old, batch), state.opt_state, old)
            new = job.train_step(state, batch)[0].params  # takes the state's memory
            changed, progress = map(float, jax.jit(captured)(old, update, new))
            rate = float(job.schedule(step))
            writes.append(dict(step=step, learning_rate=rate, changed=changed, progress=progress))
    return writes


@partial(jax.jit, static_argnums=0)
def write_untrained(link: optax.GradientTransformation, learning_rate) -> tuple[jax.Array, jax.Array]:
    """Return what `captured` says of an update of 0.2 rate N(0, 1) to a million bfloat16 weights N(0, 0.02).

    Args:
      link: what rounds, a chain's last link; `optax.identity()` leaves it to nearest.
      learning_rate: scalar.
    """
    w_key, u_key = jax.random.split(jax.random.key(0))
    weights = (0.02 * jax.random.normal(w_key, 10**6)).astype(jnp.bfloat16)
    wanted = 0.2 * learning_rate * jax.random.normal(u_key, 10**6)
    updates, _ = link.update(wanted, link.init(weights), weights)
    return captured(weights, wanted, optax.apply_updates(weights, updates))


def _float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
