"""Training with tiles: a schedule is made once for the first step and once for all others, and replayed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import ModelConfig
from jaxllm.tiles.cost_model import DataSheet, calibrate, measure_bandwidth
from jaxllm.tiles.execute import Executor
from jaxllm.tiles.feed import put, put_batch, put_rates, put_tree, take_tree
from jaxllm.tiles.gpt2 import StepOptions, TiledStep, TileSizes, check_model, gpt2_step
from jaxllm.tiles.machines import local_machine
from jaxllm.tiles.policies import get_policy
from jaxllm.tiles.simulate import Schedule, set_priorities, simulate

_SAMPLES = 3  # timings of each kernel before a run: a schedule needs no more than its order of size


@dataclass(frozen=True)
class TilesConfig:
    """How a run is cut into tile tasks and scheduled.

    Raises:
      UserError: an unknown policy, or memory that is not positive.
    """

    sizes: TileSizes = TileSizes()  # 0: an axis is not cut
    policy: str = "dmdas"  # one of tiles.POLICIES
    device_bytes: int = 0  # that tiles may use on a device; 0: as much as they need
    flash: bool = False  # compute attention's scores twice rather than keep them
    ordered: bool = False  # sums in one order: the same bits in every schedule

    def __post_init__(self):
        get_policy(self.policy)
        if self.device_bytes < 0:
            raise UserError(f"tiles.device_bytes is {self.device_bytes}; give the bytes of a device, or 0")


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
        self._program(first=False)  # what does not fit shows at once

    def load(self, params, moments: tuple[Any, Any] | None = None, step_number: int = 0) -> None:
        """Cut parameters into tiles.

        Args:
          params: the ordinary tree.
          moments: Adam's first and second; None before the first step.
          step_number: updates so far.
        """
        step = self._program(first=False)
        self.values = put_tree(self.model, step.params, params) | put(step.failed, np.zeros((), bool))
        self.step_number = step_number if moments is not None else 0
        if self.step_number:  # step 1 writes the moments and does not read them
            first, second = moments
            root = jax.tree.map(lambda v: np.sqrt(np.asarray(v)), second)
            self.values |= put_tree(self.model, step.moments[0], first)
            self.values |= put_tree(self.model, step.moments[1], root)

    def step(self, batch: Mapping[str, Any], learning_rate: float) -> dict[str, jax.Array]:
        """Take a step; return its metrics, perhaps not computed yet: those of `make_train_step`.

        Args:
          batch: tokens and targets [B, T]; optional mask and segment_ids.
          learning_rate: of this step.
        """
        number, o = self.step_number + 1, self.options
        first = number == 1
        if first not in self._executors:
            self._executors[first] = self._prepare(first)
        step, executor = self._executors[first]
        values = self.values | put_batch(step, batch, self.model.known_vocab_size)
        count = values[step.count.first]
        values |= put_rates(step, learning_rate, number, o.b1, o.b2)
        self.values, self._placed = executor.run(values), executor.schedule.placed
        self.step_number = number
        loss, squares = (self.values.pop(t.first) for t in (step.loss, step.squares))
        failed = self.values[step.failed.first]
        return {
            "loss": loss / jax.device_put(count, loss.sharding), "grad_norm": jnp.sqrt(squares),
            "failed": jnp.array(failed), "token_count": count,
        }  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        """The schedule of the steps after the first; of the first if it was the only one."""
        return self._executors[min(self._executors)][1].schedule

    def params(self) -> dict:
        """Return the parameters as the ordinary tree, of NumPy arrays."""
        return take_tree(self.model, self._program(first=False).params, self.values)

    def moments(self) -> tuple[dict, dict]:
        """Return Adam's moments as trees like the parameters; zeros before the first step."""
        if not self.step_number:
            zeros = jax.tree.map(np.zeros_like, self.params())
            return zeros, zeros
        first, root = (
            take_tree(self.model, t, self.values) for t in self._program(first=False).moments
        )
        return first, jax.tree.map(np.square, root)

    def _program(self, first: bool, rests: bool = False) -> TiledStep:
        options = dataclasses.replace(
            self.options, first=first, rests=rests, flash=self.config.flash, ordered=self.config.ordered,
            clip_norm=self.options.clip_norm or 0.0,
        )  # fmt: skip
        return gpt2_step(self.model, self.config.sizes, *self._shape, options)

    def _prepare(self, first: bool) -> tuple[TiledStep, Executor]:
        step = self._program(first)
        capacity = self.config.device_bytes
        if capacity and capacity < sum(step.graph.nbytes):  # not all may fit: say what will not be used
            step = self._program(first, rests=True)
        alone = len(self.devices) == 1
        bandwidth, latency = (1e10, 1e-5) if alone else measure_bandwidth(self.devices)
        machine = local_machine(
            self.devices, device_bytes=capacity or 1 << 62, host_bytes=1 << 62, bandwidth=bandwidth,
            latency=latency,
        )  # fmt: skip
        if alone:  # there is nothing to choose, so nothing to measure
            kind = self.devices[0].device_kind
            costs = DataSheet({kind: 1e11}, {kind: 1e10})
        else:
            costs = calibrate(step.graph, self.devices, samples=_SAMPLES)
        set_priorities(step.graph, costs.seconds(step.graph, self.devices[0].device_kind))
        placed = {handle: node for handle, node in self._placed.items() if handle in step.graph.given}
        schedule = simulate(step.graph, machine, costs, self.config.policy, placed=placed)
        return step, Executor(schedule, self.devices)
