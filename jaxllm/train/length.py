"""Whether a run may be made longer or shorter than it was begun."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxllm.errors import UserError
from jaxllm.train.config import RunConfig


def check_length(
    config: RunConfig, make_schedule: Callable[[int], optax.Schedule] | None, name: str
) -> Callable[[dict[str, Any], int, Path], None]:
    """Return a check that the steps already taken are those of a run of the length that is asked for now.

    It is what `jaxllm.train.prepare` takes as `check`, and raises UserError.

    Args:
      config: the run.
      make_schedule: its learning rate, of a run of so many steps; None: nobody knows.
      name: of the schedule.
    """

    def check(saved: dict[str, Any], step: int, folder: Path) -> None:
        steps = saved["steps"]
        if steps == config.steps:
            return
        if make_schedule is not None:
            numbers = np.arange(step)
            then, now = (jax.vmap(make_schedule(n))(numbers) for n in (steps, config.steps))
            different = np.flatnonzero(~np.isclose(then, now, rtol=1e-6, atol=0))
            if different.size:
                at = different[-1]
                raise UserError(
                    f"step {step} in {folder} is of a run of {steps} steps, and in one of {config.steps} the "
                    f"schedule '{name}' has another learning rate ({now[at]:.3g} and not {then[at]:.3g} at "
                    f"step {at + 1}); keep steps={steps}, or choose another --out (a constant schedule, or "
                    "wsd before its decay, can be extended)"
                )
        if step > config.steps:
            raise UserError(
                f"the run in {folder} has taken {step} of {steps} steps already, more than "
                f"steps={config.steps}; ask for more, or choose another --out"
            )

    return check
