"""Training with tiles: a schedule is made once for the first step and once for all others, and replayed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models import ModelConfig
from jaxllm.tiles.config import TilesConfig
from jaxllm.tiles.cost_model import DataSheet, calibrate, measure_links
from jaxllm.tiles.execute import Executor
from jaxllm.tiles.feed import put, put_batch, put_rates, put_tree, take_tree
from jaxllm.tiles.gpt2 import StepOptions, TiledStep, check_model, gpt2_step
from jaxllm.tiles.machines import local_machine
from jaxllm.tiles.simulate import Schedule, check_fits, set_priorities, simulate

_NOMINAL = 1e11, 1e10  # FLOP/s and bytes/s of a device, where there is but one
_SAMPLES = 3  # timings of each kernel before a run: a schedule needs no more than its order of size


class TiledTrainer:
    """GPT-2's parameters and moments as tiles on devices, and the step that changes them.

    Args:
      model: GPT-2's config.
      config: how it is cut and scheduled.
      batch: sequences a step.
      seq: tokens a sequence.
      options: the optimizer's values, and the parts of a batch.
      devices: each a worker.

    Raises:
      UserError: a model that is not GPT-2, tiles that cannot cover it, or a task that fits no device.
    """

    def __init__(
        self, model: ModelConfig, config: TilesConfig, batch: int, seq: int, options: StepOptions,
        devices: Sequence[jax.Device],
    ):  # fmt: skip
        check_model(model)
        self.model, self.config, self.options, self.devices = model, config, options, list(devices)
        self._shape = (batch, seq)
        self._executors: dict[bool, tuple[TiledStep, Executor]] = {}
        self._placed: Mapping[int, int] = {}
        self.values: dict[int, jax.Array] = {}
        self.step_number = 0
        self._machine = local_machine(
            devices, device_bytes=config.device_bytes or 1 << 62, host_bytes=1 << 62
        )
        self._later = self._program(first=False)
        check_fits(self._later.graph, self._machine)  # what does not fit shows at once
        self._running: Executor | None = None  # of the last step, whose tasks may not be done

    def load(self, params, moments: tuple[Any, Any] | None = None, step_number: int = 0) -> None:
        """Cut parameters into tiles.

        Args:
          params: the ordinary tree.
          moments: Adam's first and second; None before the first step.
          step_number: updates so far.
        """
        step = self._later
        self.step_number = step_number if moments is not None else 0
        params = jax.tree.map(np.asarray, params)
        with _on_host():
            self.values = put_tree(self.model, step.params, params) | put(step.failed, False)
            self.values |= put(step.updates, self.step_number)
            if self.step_number:  # step 1 writes the moments and does not read them
                first, second = (jax.tree.map(np.asarray, tree) for tree in moments)
                self.values |= put_tree(self.model, step.moments[0], first)
                self.values |= put_tree(self.model, step.moments[1], jax.tree.map(np.sqrt, second))

    def step(self, batch: Mapping[str, Any], learning_rate: float) -> dict[str, jax.Array]:
        """Take a step; return its metrics, perhaps not computed yet: those of `make_train_step`.

        Args:
          batch: tokens and targets [B, T]; optional mask and segment_ids.
          learning_rate: of this step.

        Raises:
          TaskFailed: names a task of this step, or of the last one, that failed.
        """
        if self._running is not None:
            self._running.wait()  # one step in flight, and its failures by name
        number, o = self.step_number + 1, self.options
        first = number == 1
        if first not in self._executors:
            self._executors[first] = self._prepare(first)
        step, executor = self._executors[first]
        self._running = executor
        with _on_host():
            values = self.values | put_batch(step, batch, self.model.known_vocab_size)
            values |= put_rates(step, learning_rate, number, o.b1, o.b2)
        count = values[step.count.first]
        self.values, self._placed = executor.run(values), executor.schedule.placed
        self.step_number = number
        loss, squares = (self.values.pop(t.first) for t in (step.loss, step.squares))
        failed = jnp.array(self.values[step.failed.first])  # a copy: the next step changes the tile
        return {
            "loss": loss / jax.device_put(count, loss.sharding), "grad_norm": jnp.sqrt(squares),
            "failed": failed, "token_count": count,
        }  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        """The schedule of the steps after the first; of the first if it was the only one."""
        return self._executors[min(self._executors)][1].schedule

    def params(self) -> dict:
        """Return the parameters as the ordinary tree, of NumPy arrays."""
        return take_tree(self.model, self._later.params, self.values)

    def moments(self) -> tuple[dict, dict]:
        """Return Adam's moments as trees like the parameters; zeros before the first step."""
        if not self.step_number:
            zeros = jax.tree.map(np.zeros_like, self.params())
            return zeros, zeros
        first, root = (take_tree(self.model, t, self.values) for t in self._later.moments)
        return first, jax.tree.map(np.square, root)

    def verdict(self) -> tuple[bool, int]:
        """Return whether a step failed, and how many steps were taken before; waits for them."""
        step = self._later
        return bool(self.values[step.failed.first]), int(self.values[step.updates.first])

    def _program(self, first: bool, rests: bool = False) -> TiledStep:
        options = dataclasses.replace(
            self.options, first=first, rests=rests, flash=self.config.flash, ordered=self.config.ordered,
            clip_norm=self.options.clip_norm or 0.0,
        )  # fmt: skip
        return gpt2_step(self.model, self.config.sizes, *self._shape, options)

    def _prepare(self, first: bool) -> tuple[TiledStep, Executor]:
        step = self._program(first) if first else self._later
        capacity = self.config.device_bytes
        if capacity and capacity < sum(step.graph.nbytes):  # not all may fit: say what will not be used
            step = self._program(first, rests=True)
        machine, kind = self._machine, self.devices[0].device_kind
        if len(self.devices) == 1:  # there is nothing to choose, so nothing to measure
            costs = DataSheet(*({kind: figure} for figure in _NOMINAL))
        else:
            machine = dataclasses.replace(machine, links=measure_links(self.devices))
            costs = calibrate(step.graph, self.devices, samples=_SAMPLES)
        set_priorities(step.graph, costs.seconds(step.graph, kind))
        placed = {handle: node for handle, node in self._placed.items() if handle in step.graph.given}
        schedule = simulate(step.graph, machine, costs, self.config.policy, placed=placed)
        return step, Executor(schedule, self.devices)


def _on_host():
    """Return a context in which tiles are made in the host's memory: they may not fit the devices."""
    return jax.default_device(jax.devices("cpu")[0])
