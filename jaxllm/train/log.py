"""Metrics read one step late, so that the device never waits for the host."""

import math
from typing import Any

import numpy as np

from jaxllm.train.timing import Stopwatch
from jaxllm.train.writers import Writers


class NonFiniteLoss(Exception):
    """The loss, its gradient or the update became infinite or not a number."""

    exit_code = 1

    def __init__(self, step: int, position: dict[str, Any], metrics):
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if math.isfinite(loss) and math.isfinite(norm):
            what, remedy = "the update was not finite", "raise optim.eps, lower optim.learning_rate"
        else:
            what = "the loss or its gradient was not finite"
            remedy = "lower optim.learning_rate, lengthen optim.warmup_steps"
        super().__init__(
            f"{what} at step {step} (loss {loss:.4g}, gradient norm {norm:.4g}); the state from before it is "
            f"saved: {remedy} or look at the data"
        )
        self.updates = step - 1  # that the state holds
        self.position = position  # of the data, before the offending batch


class MetricsLog:
    """Reads the metrics of each step when the next one has been dispatched."""

    def __init__(
        self,
        writers: Writers,
        watch: Stopwatch,
        *,
        every: int,
        last: int,
        learning_rates: np.ndarray | None,
    ):
        self._writers, self._watch = writers, watch
        self._every, self._last, self._learning_rates = every, last, learning_rates
        self._pending = None

    def push(self, step: int, position: dict[str, Any], metrics) -> None:
        """Hand over the metrics of a dispatched step and read those of the step before.

        Args:
          step: counted from 1.
          position: where the data stood before this step's batch.
          metrics: device arrays; see `make_train_step`.

        Raises:
          NonFiniteLoss: the step before failed.
        """
        previous, self._pending = self._pending, (step, position, metrics)
        self._read(previous)

    def flush(self) -> None:
        """Wait for the last step pushed and read it; time until the next step is not counted."""
        previous, self._pending = self._pending, None
        self._read(previous)
        self._watch.pause()

    def _read(self, pending):
        if pending is None:
            return
        step, position, metrics = pending
        if metrics["failed"]:
            raise NonFiniteLoss(step, position, metrics)
        loss = float(metrics["loss"])
        self._watch.lap()
        speed = self._watch.tokens_per_second
        self._writers.advance(loss=loss, tokens_per_second=speed)
        if step % self._every == 0 or step == self._last:
            values = {"loss": loss, "grad_norm": float(metrics["grad_norm"]), "tokens_per_second": speed}
            if self._learning_rates is not None:
                values["learning_rate"] = float(self._learning_rates[step - 1])
            self._writers.write(step, values)
