"""Machines that tasks are scheduled on: workers, memories and the links between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxllm.errors import UserError, unknown

_GB = 10**9
HOST = 0  # the number of the host's memory


@dataclass(frozen=True)
class Worker:
    """Something that runs one task at a time."""

    name: str
    kind: str  # of which the cost model knows times
    node: int  # the memory it computes in; 0 is the host's


@dataclass(frozen=True)
class Link:
    """A way from one memory to another. Transfers of the same channel wait for each other."""

    channel: str
    bandwidth: float  # bytes/s
    latency: float = 10e-6  # seconds


@dataclass(frozen=True)
class Machine:
    """Workers, how many bytes each memory holds (the host's first), and the link of each pair of memories."""

    name: str
    workers: tuple[Worker, ...]
    capacities: tuple[int, ...]
    links: dict[tuple[int, int], Link]


def gpu_machine(
    name: str, gpus: int, *, kind: str, gpu_bytes: int, host_bytes: int, pcie: float, nvlink: float
) -> Machine:
    """Return a machine whose GPUs have a link each to the host and to each other.

    Args:
      name: for reports.
      gpus: how many.
      kind: of GPU, for the cost model.
      gpu_bytes: that tiles may use on each.
      host_bytes: that tiles may use on the host.
      pcie: bytes/s between a GPU and the host, in each direction.
      nvlink: bytes/s that a GPU sends to others.
    """
    links = {}
    for gpu in range(1, gpus + 1):
        links[HOST, gpu] = Link(f"to gpu {gpu}", pcie)
        links[gpu, HOST] = Link(f"from gpu {gpu}", pcie)
        links |= {
            (gpu, other): Link(f"gpu {gpu} sends", nvlink) for other in range(1, gpus + 1) if other != gpu
        }
    workers = tuple(Worker(f"gpu {gpu}", kind, gpu) for gpu in range(1, gpus + 1))
    return Machine(name, workers, (host_bytes, *[gpu_bytes] * gpus), links)


# NVIDIA's data sheet of the A100 SXM4 80 GB: PCIe 4.0 x16 (32 GB/s, of which large copies reach about 25) and
# NVLink (600 GB/s in both directions together). StarPU uses 90 % of a GPU's memory by default.
_A100 = dict(kind="a100", gpu_bytes=int(0.9 * 80 * _GB), pcie=25e9, nvlink=250e9)
MACHINES = {
    "a100x8": gpu_machine("8 x A100, 900 GB", 8, host_bytes=900 * _GB, **_A100),
    "a100x4": gpu_machine("4 x A100, 500 GB", 4, host_bytes=500 * _GB, **_A100),
}


def get_machine(name: str) -> Machine:
    """Return the machine of this name.

    Raises:
      UserError: an unknown name.

    Examples:
      >>> len(get_machine("a100x8").workers)
      8
    """
    if name not in MACHINES:
        raise unknown("machine", name, MACHINES)
    return MACHINES[name]


def local_machine(
    devices: Sequence[jax.Device],
    *,
    device_bytes: int,
    host_bytes: int,
    links: dict[tuple[int, int], Link] | None = None,
) -> Machine:
    """Return the machine that some of jax's devices are, of any platforms.

    Args:
      devices: each a worker, with a memory of its own.
      device_bytes: that tiles may use on each.
      host_bytes: that tiles may use on the host.
      links: of each pair of memories, as `measure_links` finds them; None: one channel for all, of 10 GB/s.

    Raises:
      UserError: no devices, or no memory.
    """
    if not devices or device_bytes <= 0 or host_bytes <= 0:
        raise UserError(
            f"{len(devices)} devices with {device_bytes} bytes each and {host_bytes} on the host; "
            "give at least one device, and positive bytes"
        )
    nodes = range(len(devices) + 1)
    return Machine(
        f"{len(devices)} x {devices[0].device_kind}",
        tuple(Worker(str(device), device.device_kind, i) for i, device in enumerate(devices, 1)),
        (host_bytes, *[device_bytes] * len(devices)),
        links or {(a, b): Link("copies", 1e10) for a in nodes for b in nodes if a != b},
    )
