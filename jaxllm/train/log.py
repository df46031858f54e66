"""Metrics read one step late, so that the device never waits for the host."""

import math
from typing import Any

import numpy as np

from jaxllm.train.timing import Stopwatch
from jaxllm.train.writers import Writers


class NonFiniteLoss(Exception):
    """The loss, its gradient or the update became infinite or not a number."""

    exit_code = 1

    def __init__(
        self, step: int, position: dict[str, Any], metrics, *, saved: bool = True, overwritten: bool = False
    ):
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if math.isfinite(loss) and math.isfinite(norm):
            what, remedy = "the update was not finite", "raise the optimizer's eps, lower the learning rate"
            settings = "optim.eps, optim.learning_rate"
        else:
            what = "the loss or its gradient was not finite"
            remedy = "lower the learning rate, lengthen its warmup"
            settings = "optim.learning_rate, optim.warmup_steps"
        when, state = f"at step {step}", "the state from before it is saved"
        if not saved:  # it was changed in place, and is tested where it would be saved
            when, state = f"{when} or before", "with offload the run goes on from its last checkpoint"
        super().__init__(
            f"{what} {when} (loss {loss:.4g}, gradient norm {norm:.4g}); {state}: {remedy} "
            f"(in a TrainConfig: {settings}) or look at the data"
        )
        self.saved = saved  # else the state before the update is gone
        self.overwritten = overwritten  # the state before the update has to be made again
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
        unit: str,
        learning_rates: np.ndarray | None,
    ):
        self._writers, self._watch = writers, watch
        self._every, self._last, self._learning_rates = every, last, learning_rates
        self._unit = unit
        self._pending = None
        # Metrics of the last step that did not fail.
        self.last = {"loss": math.nan, "grad_norm": math.nan, "sound": True}

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
            raise NonFiniteLoss(step, position, metrics, overwritten=not metrics.get("sound", True))
        self.last = metrics
        loss = float(metrics["loss"])
        self._watch.lap()
        speed = self._watch.speed
        self._writers.advance(loss, speed, self._unit)
        if step % self._every == 0 or step == self._last:
            values = {"loss": loss, "grad_norm": float(metrics["grad_norm"])}
            if speed:  # not known of one step
                values[f"{self._unit}_per_second"] = speed
            if self._learning_rates is not None:
                values["learning_rate"] = float(self._learning_rates[step - 1])
            self._writers.write(step, values)
