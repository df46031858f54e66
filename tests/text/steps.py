"""Steps of a run without the rest of `train`: no evaluation to compile, nothing written."""

import jax

from jaxllm.text import prepare


def take_steps(config, number, **options):
    """Return (losses of the first steps, the state after them)."""
    job = prepare(config, **options)
    state, batches, losses = job.init(jax.random.key(0)), job.batches(), []
    for step in range(number):
        state, metrics = job.train_step_at(step)(state, job.put(next(batches)))
        losses.append(float(metrics["loss"]))
    return losses, state
