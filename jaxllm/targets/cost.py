"""The work of a compiled program, and how long a machine needs for it at least."""

import re
from dataclasses import dataclass, field

from jaxllm.targets import traffic
from jaxllm.targets.catalog import Target
from jaxllm.targets.flops import is_silent_kernel, matmul_flops
from jaxllm.targets.hlo import Module


@dataclass
class Work:
    """What one device does in one run of the program."""

    flops: dict[str, float] = field(default_factory=dict)  # of matrix products, by key of peak_flops
    bytes_moved: float = 0.0  # to and from main memory
    sent: dict[str, float] = field(default_factory=dict)  # bytes over the network, by mesh axis
    silent_kernels: int = 0  # calls of Pallas kernels whose FLOPs nobody declared
    cycles: float = 0.0  # the compiler's own estimate; 0 where it makes none
    seconds: float = 0.0  # operations one after another, each at its roofline, without the network
    network_seconds: float = 0.0
    exposed_seconds: float = 0.0  # of them, those with nothing scheduled beside them to do
    host_bytes: float = 0.0  # between the device and its host's memory, both ways
    exposed_host_seconds: float = 0.0  # of the link, with nothing scheduled beside it to do

    def silent_seconds(self, target: Target, model_flops: float) -> float:
        """Return the time of kernels that declare no FLOPs: they do what else the model has."""
        if not self.silent_kernels or not self.flops:
            return 0.0
        dtype = max(self.flops, key=self.flops.get)
        return target.seconds_of_flops(max(model_flops - sum(self.flops.values()), 0.0), dtype)

    def compute_seconds(self, target: Target) -> float:
        """Return how long the matrix products take at the peak of their type."""
        return sum(target.seconds_of_flops(count, dtype) for dtype, count in self.flops.items())


def count_work(module: Module, target: Target, axis_sizes: dict[str, int]) -> Work:
    """Add up a program's operations, those in a loop's body as often as it runs.

    Args:
      module: scheduled, for one device.
      target: whose peaks turn work into seconds.
      axis_sizes: the mesh's axes in order, to say along which of them data is sent.
    """
    work = Work()
    for computation, times in module.scheduled():
        seconds = []  # of each operation, at its roofline
        for instruction in computation.instructions:
            moved = times * traffic.hbm_bytes(module, computation, instruction)
            flops = matmul_flops(module, computation, instruction)
            compute = 0.0
            for dtype, count in flops.items():
                work.flops[dtype] = work.flops.get(dtype, 0.0) + times * count
                compute += times * target.seconds_of_flops(count, dtype)
            work.bytes_moved += moved
            seconds.append(max(compute, moved / target.hbm_bandwidth))
            work.silent_kernels += times * is_silent_kernel(instruction)
            work.cycles += times * _cycles(instruction)
        work.seconds += sum(seconds)
        for size, window in traffic.host_transfers(module, computation):
            work.host_bytes += times * size
            link = times * size / target.host_link_bandwidth
            work.exposed_host_seconds += _beyond(link, seconds, window)
        for _, sent, groups, window in traffic.collectives(module, computation):
            axis = traffic.mesh_axes(groups, axis_sizes)
            work.sent[axis] = work.sent.get(axis, 0.0) + times * sent
            network = sent / _bandwidth(target, groups)
            work.network_seconds += times * network
            work.exposed_seconds += _beyond(times * network, seconds, window)
    return work


def _beyond(network: float, seconds: list[float], window: range) -> float:
    """Return what is left of a transfer beside the operations of a window; take their time for it."""
    for at in window:
        hidden = min(network, seconds[at])
        seconds[at] -= hidden
        network -= hidden
    return network


def _cycles(instruction) -> float:
    if instruction.opcode in ("while", "call", "conditional"):
        return 0.0  # the sum of what they run
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return float(found.group(1)) if found else 0.0


def _bandwidth(target: Target, groups) -> float:
    """Return the speed of the slowest link a group of devices crosses."""
    hosts = [{device // target.fast_devices for device in group} for group in groups]
    if any(len(host) > 1 for host in hosts):
        return target.host_network_bandwidth
    return target.network_bandwidth
