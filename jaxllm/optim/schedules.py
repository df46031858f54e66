"""Learning-rate schedules by name: cosine, wsd, linear, constant, each after a linear warm-up."""

from typing import Literal, get_args

import jax.numpy as jnp
import optax

from jaxllm.errors import unknown

ScheduleName = Literal["cosine", "wsd", "linear", "constant"]


def make_schedule(
    name: ScheduleName,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.1,
    decay_fraction: float = 0.2,
) -> optax.Schedule:
    """Return a function from the step to the learning rate.

    The warm-up rises linearly and reaches `peak` at step `warmup_steps`; its first step is not 0,
    so no step is wasted; a run shorter than its warm-up ends within it.

    Args:
      name: "cosine"; "wsd" (warm-up, stable, then a linear decay over the last `decay_fraction` of
        the steps; arXiv 2405.18392); "linear"; or "constant".
      peak: the highest rate.
      steps: how many steps the run takes.
      warmup_steps: how many of them warm up.
      final_fraction: the rate at the end, as a fraction of `peak`.
      decay_fraction: for "wsd", how much of the run decays.

    Raises:
      UserError: an unknown name.

    Examples:
      >>> schedule = make_schedule("wsd", peak=1.0, steps=100, warmup_steps=10, final_fraction=0.0)
      >>> [round(float(schedule(t)), 2) for t in (0, 4, 9, 50, 80, 90, 100)]
      [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    if name not in get_args(ScheduleName):
        raise unknown("schedule", name, get_args(ScheduleName))
    rest, final = max(1, steps - warmup_steps), peak * final_fraction
    if name == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=final_fraction)
    elif name == "linear":
        after = optax.linear_schedule(peak, final, rest)
    elif name == "wsd":
        decay = min(rest, max(1, round(steps * decay_fraction)))
        after = optax.linear_schedule(peak, final, decay, transition_begin=rest - decay)
    else:
        after = optax.constant_schedule(peak)
    if not warmup_steps:
        return _of_float(after)
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return _of_float(optax.join_schedules([warmup, after], [warmup_steps]))


def _of_float(schedule: optax.Schedule) -> optax.Schedule:
    """Return the schedule with its count cast first: a quotient of 64-bit counts would be float64."""
    return lambda count: schedule(jnp.asarray(count, jnp.float32))
