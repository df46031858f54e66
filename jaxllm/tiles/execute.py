"""Run a schedule on jax's devices: each task a jitted kernel, each transfer a device_put.

The order is the schedule's, made once and replayed every step. Nothing here waits for a device: jax's
runtime runs what it was handed as soon as its inputs are there, on all devices at once, and moves tiles
meanwhile.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import jax

from jaxllm.tiles.access import Mode
from jaxllm.tiles.kernels import compiled
from jaxllm.tiles.memory import Key
from jaxllm.tiles.simulate import Schedule

_IN_FLIGHT = 256  # tasks handed to the runtime and not known to be done, at most


class TaskFailed(RuntimeError):
    """A task raised: the message names it, and what it raised is the cause."""

    exit_code = 1


class Executor:
    """A schedule made ready for replay.

    Args:
      schedule: for a machine whose memories 1, 2, ... are these devices'.
      devices: jax devices, of any platforms.
    """

    def __init__(self, schedule: Schedule, devices: Sequence[jax.Device]):
        self.schedule, self.graph = schedule, schedule.graph
        # Host memory is the CPU backend's, whatever the devices are.
        self._devices = [jax.devices("cpu")[0], *devices]
        self._steps = list(self._prepare())
        self._flying: deque = deque()  # (task, results) handed to the runtime

    def _prepare(self):
        """Yield (function, keys it takes, keys it gives, node, task) for a task, and for what moves likewise.

        Without a function: a copy from node `takes` to `node`, or, with takes None, a drop.
        """
        graph, machine = self.graph, self.schedule.machine
        own: set[Key] = set()  # workers' copies that exist
        for kind, what, *rest in self.schedule.actions:
            if kind == "copy":
                yield None, rest[0], what, rest[1], -1
            elif kind == "drop":
                yield None, None, what, rest[0], -1
            else:
                task, worker = graph.tasks[what], rest[0]
                node, kernel = machine.workers[worker].node, graph.kernels[task.kernel]
                if kind == "merge":
                    own.difference_update(rest[1])
                    keys = [*task.reads, *rest[1]]
                    yield _merging(compiled(kernel)), keys, task.handles, node, what
                    continue
                takes, gives, modes = [], [], []
                for mode, handle in zip(kernel.modes, task.handles, strict=True):
                    key = (handle, worker) if mode is Mode.REDUX else handle
                    if mode is Mode.REDUX and key not in own:  # the first part is the sum
                        own.add(key)
                        mode = Mode.W
                    modes.append(mode)
                    if mode not in (Mode.W, Mode.SCRATCH):
                        takes.append(key)
                    if mode not in (Mode.R, Mode.SCRATCH):
                        gives.append(key)
                yield compiled(kernel._replace(modes=tuple(modes))), takes, gives, node, what

    def run(self, values: Mapping[int, jax.Array]) -> dict[int, jax.Array]:
        """Hand the whole schedule to the runtime; return the tiles that are left, perhaps not computed yet.

        Args:
          values: of every given tile, on any device; those that tasks change are consumed.

        Raises:
          TaskFailed: names the first task that is known to have failed.
        """
        devices = self._devices
        store: list[dict[Key, jax.Array]] = [{} for _ in devices]
        for handle, node in self.schedule.start.items():
            value = values[handle]
            if value.sharding.device_set != {devices[node]}:
                value = jax.device_put(value, devices[node])
            store[node][handle] = value
        self._flying.clear()
        task = -1
        try:
            for function, takes, gives, node, task in self._steps:
                here = store[node]
                if function is not None:
                    results = function(*[here[key] for key in takes])
                    for key, result in zip(gives, results, strict=True):
                        here[key] = result
                    self._flying.append((task, results))
                    if len(self._flying) > _IN_FLIGHT:
                        jax.block_until_ready(_kept(self._flying[0][1]))
                        self._flying.popleft()
                elif takes is not None:
                    here[gives] = jax.device_put(store[takes][gives], devices[node])
                else:
                    here.pop(gives, None)
        except Exception as error:
            self.wait()  # one before it may have failed, and be the cause
            raise self._failed(task, error) from error
        return {handle: store[node][handle] for handle, node in self.schedule.placed.items()}

    def wait(self) -> None:
        """Wait until everything is computed.

        Raises:
          TaskFailed: names the first task that failed. If what it wrote was changed in place since, it names
            the task that changed it.
        """
        while self._flying:
            number, results = self._flying.popleft()
            try:
                jax.block_until_ready(_kept(results))
            except Exception as error:
                self._flying.clear()
                raise self._failed(number, error) from error

    def _failed(self, number: int, error: Exception) -> TaskFailed:
        if number < 0:
            return TaskFailed(f"a transfer failed: {_first_line(error)}")
        return TaskFailed(f"task {self.graph.label(self.graph.tasks[number])} failed: {_first_line(error)}")


def _merging(merge):
    def run(total, *parts):
        for part in parts:
            (total,) = merge(part, total)
        return (total,)

    return run


def _kept(results) -> list[jax.Array]:
    """Return the results that no later task changed in place: those are done when that task is."""
    return [result for result in results if not result.is_deleted()]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
