"""Machines by name, with the public numbers that a forecast needs."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from jaxllm.errors import UserError, unknown

_GIB = 2**30


@dataclass(frozen=True)
class Target:
    """A machine: `num_devices` equal devices. All figures are of one device, in bytes, bytes/s, FLOP/s."""

    name: str  # "v5e-8", "h100x8", "cpu"
    platform: str  # "tpu", "cuda" or "cpu"
    chip: str  # "v5e", "h100", "cpu": the key of the calibration table
    num_devices: int  # as jax counts them
    hbm_bytes: int  # what a program may use, the system's share taken off
    hbm_bandwidth: float
    peak_flops: Mapping[str, float]  # of matrix products, dense: "bf16", "f32" (tf32 on a GPU), "int8"
    network_bandwidth: float  # sent by a device over all its links (ICI, NVLink), one direction
    host_network_bandwidth: float  # a device's share of its host's network card, one direction
    fast_devices: int  # how many devices the fast network joins: a TPU slice, an NVLink box
    host_bytes: int  # a device's share of its host's memory
    host_link_bandwidth: float  # between a device and its host's memory (PCIe), one direction
    gpu_memory: int = 0  # as the driver reports it, where hbm_bytes is less
    topology: str = ""  # what the compiler calls the arrangement: "v5e:2x4", "1x1x8"
    clock_hz: float = 0.0  # of the cycles in a TPU compiler's estimate; 0 where there is none
    efficiency: float = 1.0  # the part of the roofline's speed that measured runs reach, from calibrated.json

    @property
    def plane_devices(self) -> int:
        """How many devices the two longest sides of a TPU slice span; elsewhere all that are near."""
        if self.platform != "tpu":
            return self.num_devices
        sides = sorted(map(int, self.topology.partition(":")[2].split("x")))
        return math.prod(sides[-2:]) * self.num_devices // math.prod(sides)

    def seconds_of_flops(self, flops: float, dtype: str = "bf16") -> float:
        """Return how long one device needs for this many FLOPs at its peak."""
        return flops / self.peak_flops[dtype]


# Google counts TensorCores in the names of v4, v5p and 7x slices, chips in those of v5e and v6e.
# Slices: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x, tables of configurations.
_SLICES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_SLICES_V5P = (*_SLICES_3D, "4x4x12", "4x8x12", "8x8x12", "8x12x16", "12x16x16", "16x16x16", "16x16x24")


@dataclass(frozen=True)
class TpuChip:
    """What one generation's data sheet says of a jax device (a chip; on 7x half a chip)."""

    slices: tuple[str, ...]
    named_by: int  # what a chip adds to a slice's name: 2 where TensorCores are counted
    devices: int  # jax devices a chip
    hbm_gib: float  # the limit that the compiler itself states when a program does not fit
    hbm_bandwidth: float
    bf16: float
    int8: float
    network: float
    host_network: float
    host_gib: float
    clock_hz: float


# Sources: HBM bandwidth, peak and inter-chip figures from the pages above ("per chip"; the
# bidirectional interconnect figure halved). The usable HBM is what libtpu's own out-of-memory
# message gives. Clocks follow from peak = 2 x MXUs x side^2 x clock. Host memory: the same pages'
# machine types, divided by chips a host. Host network: 100 or 200 Gbit/s a host, over its chips.
_TPUS = {
    "v4": TpuChip((*_SLICES_3D, "4x4x12"), 2, 1, 30.75, 1.2e12, 275e12, 275e12, 300e9, 6.25e9, 100.0, 1.05e9),
    "v5e": TpuChip(_SLICES_2D, 1, 1, 15.75, 0.81e12, 197e12, 393e12, 200e9, 3.125e9, 47.0, 1.5e9),
    "v5p": TpuChip(_SLICES_V5P, 2, 1, 95.73, 2.765e12, 459e12, 918e12, 600e9, 6.25e9, 112.0, 1.75e9),
    "v6e": TpuChip(_SLICES_2D, 1, 1, 31.24, 1.64e12, 918e12, 1836e12, 400e9, 6.25e9, 180.0, 1.75e9),
    "tpu7x": TpuChip(_SLICES_V5P, 2, 2, 94.74, 3.69e12, 1153e12, 1153e12, 300e9, 6.25e9, 118.0, 2.2e9),
}


@dataclass(frozen=True)
class GpuChip:
    """What a GPU's data sheet says."""

    memory: int  # as the driver reports it
    bandwidth: float
    bf16: float
    f32: float  # TF32 where the tensor cores have it: what jax's default precision uses
    int8: float
    network: float
    host_network: float
    pcie: float


# NVIDIA data sheets (dense figures, without sparsity; links in one direction): H100 and H200 SXM,
# B200 (DGX B200), A100 SXM4, L4, T4. Host network: one 400 (A100: 200) Gbit/s card a GPU, as in the DGX
# systems; L4 and T4 have no NVLink, so their fast network is PCIe. T4 multiplies bfloat16 on its
# float32 units. Memory sizes are the driver's, as XLA's published target configs record them.
_GPUS = {
    "b200": GpuChip(191_514_411_008, 7.7e12, 2250e12, 1100e12, 4500e12, 900e9, 50e9, 64e9),
    "h200": GpuChip(151_397_597_184, 4.8e12, 989e12, 494e12, 1979e12, 450e9, 50e9, 64e9),
    "h100": GpuChip(84_942_979_072, 3.35e12, 989e12, 494e12, 1979e12, 450e9, 50e9, 64e9),
    "a100-80gb": GpuChip(85_100_068_864, 2.039e12, 312e12, 156e12, 624e12, 300e9, 25e9, 32e9),
    "a100-40gb": GpuChip(42_331_013_120, 1.555e12, 312e12, 156e12, 624e12, 300e9, 25e9, 32e9),
    "l4": GpuChip(23_580_639_232, 0.3e12, 121e12, 60e12, 242e12, 32e9, 3e9, 32e9),
    "t4": GpuChip(15_842_934_784, 0.32e12, 8.1e12, 8.1e12, 130e12, 16e9, 3e9, 16e9),
}
_GPU_USABLE = 0.95  # the rest holds the CUDA context, library workspaces and NCCL's buffers
_GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_GPU_HOST_BYTES = {"t4": 52 * _GIB, "l4": 48 * _GIB}  # Colab's and g2-standard-12's hosts
_GPUS_PER_HOST = 8


def target_names() -> list[str]:
    """Return the name of every machine with one host, and the smallest slices of the others."""
    tpus = [n for chip in _TPUS for n in list(_tpu_slices(chip))[:4]]
    return [*tpus, *_GPUS, *(f"{gpu}x8" for gpu in _GPUS), "cpu"]


def get_target(name: str | Target) -> Target:
    """Return the machine of this name.

    TPU slices are named as Google names them: `v5e-8` and `v6e-8` have 8 chips, while v4, v5p and
    tpu7x count TensorCores, two a chip, so `v4-8` and `v5p-8` have 4 chips and `v5p-128` has 64. A v4
    or v5p chip is one jax device, a tpu7x chip is two. GPUs are `h100`, `a100-80gb`, `a100-40gb`, `l4`,
    `t4`, `h200`, `b200`, with `xN` for N of them (`h100x8`; above 8, several hosts of 8). `cpu` is
    this machine, `cpux8` its 8 simulated devices.

    Raises:
      UserError: an unknown name, or a slice that is not sold; names the nearest that are.

    Examples:
      >>> get_target("v5p-128").num_devices
      64
      >>> get_target("h100x8").num_devices
      8
    """
    if isinstance(name, Target):
        return name
    text = name.strip().lower()
    if re.fullmatch(r"cpu(x\d+)?", text):
        return _cpu(text)
    chip, dash, size = text.rpartition("-")
    if chip in _TPUS and dash:
        return _with_efficiency(_tpu(text, chip, size))
    gpu, times, count = text.partition("x") if "x" in text else (text, "", "1")
    if gpu in _GPUS and (times or text in _GPUS):
        return _with_efficiency(_gpu(text, gpu, count))
    if text in _TPUS:
        raise UserError(
            f"target '{name}' does not say how large the slice is; choose one of "
            f"{', '.join(list(_tpu_slices(text)))}"
        )
    raise unknown("target", name, target_names())


def _tpu_slices(chip: str) -> dict[str, str]:
    """Return the slices of a generation, name to topology, smallest first."""
    spec = _TPUS[chip]
    sizes = {_product(shape) * spec.named_by: shape for shape in spec.slices}
    return {f"{chip}-{size}": sizes[size] for size in sorted(sizes)}


def _tpu(name: str, chip: str, size: str) -> Target:
    slices = _tpu_slices(chip)
    if name not in slices:
        raise UserError(
            f"target '{name}' is not a slice of TPU {chip} (sizes count "
            f"{'TensorCores' if _TPUS[chip].named_by == 2 else 'chips'}); the nearest are "
            f"{_nearest(slices, chip + '-', size)}"
        )
    spec, shape = _TPUS[chip], slices[name]
    num_devices = _product(shape) * spec.devices
    return Target(
        name=name,
        platform="tpu",
        chip=chip,
        num_devices=num_devices,
        hbm_bytes=int(spec.hbm_gib * _GIB),
        hbm_bandwidth=spec.hbm_bandwidth,
        # At jax's default precision a float32 product is one bfloat16 pass.
        peak_flops={"bf16": spec.bf16, "f32": spec.bf16, "int8": spec.int8},
        network_bandwidth=spec.network,
        host_network_bandwidth=spec.host_network,
        fast_devices=num_devices,
        host_bytes=int(spec.host_gib * _GIB),
        host_link_bandwidth=16e9,  # PCIe 3.0 x16; Google publishes no figure for its boards
        topology=f"{chip}:{shape}",
        clock_hz=spec.clock_hz,
    )


def _gpu(name: str, chip: str, count: str) -> Target:
    if not count.isdecimal() or int(count) not in _GPU_COUNTS:
        near = _nearest([f"{chip}x{n}" for n in _GPU_COUNTS], chip + "x", count)
        raise UserError(f"target '{name}': that number of GPUs is not planned for; the nearest are {near}")
    spec, number = _GPUS[chip], int(count)
    hosts, each = max(1, number // _GPUS_PER_HOST), min(number, _GPUS_PER_HOST)
    return Target(
        name=name,
        platform="cuda",
        chip=chip,
        num_devices=number,
        hbm_bytes=int(spec.memory * _GPU_USABLE),
        hbm_bandwidth=spec.bandwidth,
        peak_flops={"bf16": spec.bf16, "f32": spec.f32, "int8": spec.int8},
        network_bandwidth=spec.network,
        host_network_bandwidth=spec.host_network,
        fast_devices=each,
        host_bytes=_GPU_HOST_BYTES.get(chip, 256 * _GIB),  # a DGX host has 2 TB for 8 GPUs
        host_link_bandwidth=spec.pcie,
        gpu_memory=spec.memory,
        topology=f"1x{hosts}x{each}",
    )


def _cpu(name: str) -> Target:
    """Return this machine's CPU; its speed is nominal, for a forecast's shape and not its seconds."""
    number = int(name[4:] or 1) if name != "cpu" else 1
    if number < 1:
        raise UserError(f"target '{name}' has no device; choose cpu or cpuxN with N at least 1")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = os.cpu_count() or 1
    flops = 80e9 * cores / number  # 2.5 GHz x 32 float32 operations a cycle (two AVX2 FMA units)
    return Target(
        name=name,
        platform="cpu",
        chip="cpu",
        num_devices=number,
        hbm_bytes=memory // number,
        hbm_bandwidth=25.6e9 / number,  # one channel of DDR4-3200
        peak_flops={"bf16": flops, "f32": flops, "int8": flops},
        network_bandwidth=25.6e9 / number,
        host_network_bandwidth=1e9,
        fast_devices=number,
        host_bytes=memory // number,
        host_link_bandwidth=25.6e9 / number,
    )


def _with_efficiency(target: Target) -> Target:
    """Fill in what calibrated.json says of the chip; a chip that is not in it keeps 1."""
    table = resources.files("jaxllm.targets") / "calibrated.json"
    if not table.is_file():
        return target
    entry = json.loads(table.read_text()).get(target.chip)
    return target if entry is None else dataclasses.replace(target, efficiency=float(entry["efficiency"]))


def _nearest(names, prefix: str, size: str) -> str:
    """Return the two or three names whose size is closest to the one asked for."""
    names = list(names)
    wanted = int(size) if size.isdecimal() else 0
    names.sort(key=lambda n: abs(int(n.removeprefix(prefix)) - wanted))
    return ", ".join(sorted(names[:3], key=lambda n: int(n.removeprefix(prefix))))


def _product(shape: str) -> int:
    product = 1
    for side in shape.split("x"):
        product *= int(side)
    return product
