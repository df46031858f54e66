"""How long a tile kernel takes on a kind of worker: measured, or from a machine's data sheet."""

import itertools
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.tiles.access import Mode
from jaxllm.tiles.graph import Graph, Kernel
from jaxllm.tiles.kernels import compiled
from jaxllm.tiles.machines import Link

CALIBRATED = 10  # samples after which StarPU trusts a history
_ENOUGH, _CALLS = 1e-2, 64  # seconds of one sample; shorter tasks are called several times, at most so many
_OUTLIER = 0.5  # samples off the median by more are dropped


class CostModel(Protocol):
    """Seconds of each kernel of a graph on a kind of worker."""

    def seconds(self, graph: Graph, kind: str) -> list[float]: ...  # noqa: E704


def kernel_key(kernel: Kernel) -> str:
    """Return what a history is filed under: op, sizes, modes and flags, so that no two codes share a name."""
    shapes = ",".join(f"{'x'.join(map(str, shape))}:{dtype}" for shape, dtype in kernel.shapes)
    flags = ",".join(f"{name}={value}" for name, value in kernel.static)
    return f"{kernel.op.name}({shapes};{'/'.join(mode.value for mode in kernel.modes)};{flags})"


@dataclass
class History:
    """Samples of seconds, by kernel and kind of worker.

    Examples:
      >>> history = History()
      >>> for sample in (1.0, 1.1, 0.9, 7.0):
      ...     history.add("gemm", "cpu", sample)
      >>> history.mean("gemm", "cpu")
      1.0
    """

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # kind: kernel: seconds

    def add(self, key: str, kind: str, seconds: float) -> None:
        """Add a sample."""
        self.samples.setdefault(kind, {}).setdefault(key, []).append(seconds)

    def mean(self, key: str, kind: str) -> float:
        """Return the mean of the samples but those far off the median."""
        samples = self.samples[kind][key]
        middle = statistics.median_low(samples)  # one of them, so that never all are dropped
        return statistics.fmean(s for s in samples if abs(s - middle) <= _OUTLIER * middle)

    def seconds(self, graph: Graph, kind: str) -> list[float]:
        """Return the seconds of each kernel of a graph.

        Raises:
          UserError: it holds no samples of one of them.
        """
        known = self.samples.get(kind, {})
        result = []
        for kernel in graph.kernels:
            key = kernel_key(kernel)
            if key not in known:
                raise UserError(
                    f"the cost model holds {len(known)} kernels of '{kind}' and not {key}; it was made for "
                    "other ops or tile sizes: calibrate it for this graph"
                )
            result.append(self.mean(key, kind))
        return result

    def save(self, path) -> None:
        """Write the samples as JSON."""
        write_file(path, (json.dumps(self.samples, indent=1) + "\n").encode())

    @staticmethod
    def load(path) -> "History":
        """Read what `save` wrote."""
        return History(json.loads(Path(path).read_text(encoding="utf-8")))


def calibrate(
    graph: Graph, devices: Iterable[jax.Device], history: History | None = None, samples: int = CALIBRATED
) -> History:
    """Time every kernel of a graph that has fewer than `samples` yet, on all devices of a kind at once.

    At once, as in a run: devices may share what they compute with, as simulated ones share a CPU's cores, and
    then none is as fast as it is alone.

    Args:
      graph: what will be run.
      devices: what it will be run on, all of them.
      history: is added to; None: a new one.
      samples: timings of each kernel; the run that compiles is not one.
    """
    history = history or History()
    kinds: dict[str, list[jax.Device]] = {}
    for device in devices:
        kinds.setdefault(device.device_kind, []).append(device)
    for kind, alike in kinds.items():
        for kernel in graph.kernels:
            key = kernel_key(kernel)
            missing = samples - len(history.samples.get(kind, {}).get(key, ()))
            if missing > 0:
                _seconds_a_call(kernel, alike, 1)  # compiles
                calls = min(_CALLS // len(alike), int(_ENOUGH / _seconds_a_call(kernel, alike, 4)))
                for _ in range(missing):
                    history.add(key, kind, _seconds_a_call(kernel, alike, max(1, calls)))
    return history


def _seconds_a_call(kernel: Kernel, devices: Sequence[jax.Device], calls: int) -> float:
    """Return the seconds of one of some calls in a row on each device; waiting takes time, so once."""
    values = [jax.device_put(_values(kernel), device) for _ in range(calls) for device in devices]
    jax.block_until_ready(values)
    begun = time.perf_counter()
    jax.block_until_ready([compiled(kernel)(*each) for each in values])
    return (time.perf_counter() - begun) / calls


def _values(kernel: Kernel) -> list[jax.Array]:
    """Return arrays of what a kernel takes: ones, which no kernel divides to infinity."""
    taken = zip(kernel.modes, kernel.shapes, strict=True)
    return [jnp.ones(shape, dtype) for mode, (shape, dtype) in taken if mode not in (Mode.W, Mode.SCRATCH)]


@dataclass(frozen=True)
class DataSheet:
    """Seconds from FLOPs and bytes: for machines that are not here.

    A task takes the longer of its arithmetic and its memory traffic, and the launch.
    """

    flops: Mapping[str, float]  # kind of worker: FLOP/s that large products reach
    bandwidth: Mapping[str, float]  # kind: bytes/s
    launch: float = 20e-6  # seconds a task

    def seconds(self, graph: Graph, kind: str) -> list[float]:
        """Return the seconds of each kernel of a graph.

        Raises:
          UserError: an unknown kind of worker.
        """
        if kind not in self.flops:
            raise UserError(f"the data sheet has no worker of kind '{kind}'; it has {', '.join(self.flops)}")
        return [
            self.launch + max(flops / self.flops[kind], moved / self.bandwidth[kind])
            for flops, moved, _ in graph.work
        ]


# TF32 at 156 TFLOP/s and 2.04 TB/s on the data sheet; large products reach about 3/4 and 4/5 of them.
A100_TF32 = DataSheet({"a100": 0.75 * 156e12}, {"a100": 0.8 * 2.04e12})


def measure_links(devices: Sequence[jax.Device], nbytes: int = 1 << 22) -> dict[tuple[int, int], Link]:
    """Time copies between the host's memory, 0, and those of devices, 1, 2, ...; each pair by itself.

    A GPU or TPU has a channel of its own to the host, one from it, and one to the others; CPU devices and the
    host share one.

    Args:
      devices: of any platforms.
      nbytes: of a copy.
    """
    places = [jax.devices("cpu")[0], *devices]
    links = {}
    for (a, source), (b, target) in itertools.permutations(enumerate(places), 2):
        latency = _seconds_a_copy(source, target, 1)
        seconds = _seconds_a_copy(source, target, nbytes) - latency
        channel = _channel((a, source.platform), (b, target.platform))
        links[a, b] = Link(channel, nbytes / max(seconds, 1e-9), latency)
    return links


def _channel(source: tuple[int, str], target: tuple[int, str]) -> str:
    """Return the channel of copies between two memories, each a number and a platform."""
    if source[1] == target[1] == "cpu":
        return "copies"
    return f"to {target[0]}" if source[1] == "cpu" else f"from {source[0]} to {target[1]}"


def _seconds_a_copy(source: jax.Device, target: jax.Device, nbytes: int) -> float:
    value = jax.block_until_ready(jax.device_put(jnp.ones(nbytes, jnp.uint8), source))
    times = []
    for _ in range(CALIBRATED):
        begun = time.perf_counter()
        jax.block_until_ready(jax.device_put(value, target))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
