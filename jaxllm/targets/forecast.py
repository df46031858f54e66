"""What a compiler's account of a program says about running it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxllm.targets import memory_plot
from jaxllm.targets.catalog import Target
from jaxllm.targets.units import as_size, as_time


@dataclass(frozen=True)
class Forecast:
    """Memory and time of one program on one target; every figure is of one device and one run.

    The memory is the compiler's own account. Which scope it belongs to, and everything about time, is
    worked out from the text of the compiled program.
    """

    target: Target
    name: str  # of the program
    peak_bytes: int  # arguments + outputs - donated + temporaries + code, as memory_analysis gives them
    breakdown: dict[str, int]  # of peak_bytes, by what it is for; sums to peak_bytes
    timeline: tuple[tuple[str, dict[str, int]], ...]  # (operation, live temporaries by label), in order
    simulated_temporaries: int  # the timeline's peak, to hold against breakdown's total
    compiler_temporaries: int  # the compiler's figure for the same
    bytes_moved: float  # to and from main memory
    flops: dict[str, float]  # of matrix products that the program does, by type
    model_flops: float  # of the model by definition, without recomputation; 0 where no model is given
    collective_bytes: dict[str, float]  # sent, by mesh axis
    compiler_seconds: float  # the TPU compiler's cycle estimates, loops multiplied out; 0 on others
    compute_seconds: float  # matrix products at peak
    memory_seconds: float  # bytes moved at full bandwidth
    network_seconds: float  # bytes sent at full bandwidth
    roofline_seconds: float  # operation by operation, each at the slower of compute and memory; and what
    # copies from and to the host wait with nothing beside them
    seconds: float  # the estimate: the operations or the network if slower, over the target's efficiency, and
    # the wait for the host's memory
    compile_wall_seconds: float
    exposed_network_seconds: float = 0.0  # of network_seconds, with no operation scheduled meanwhile
    host_bytes: int = 0  # what lies in the host's memory; peak_bytes does not count it
    host_bytes_moved: float = 0.0  # between the device and the host's memory, both ways
    host_seconds: float = 0.0  # these at the link's full bandwidth, one after the other
    exposed_host_seconds: float = 0.0  # of host_seconds, with no operation scheduled meanwhile
    silent_kernels: int = 0  # kernel calls that declare no FLOPs; they are timed as the rest of model_flops
    failure: str = ""  # what the compiler said where it gave up because the program does not fit

    @property
    def fits(self) -> bool:
        """Whether the program's memory is within the device's, and its part of the host's."""
        within = self.peak_bytes <= self.target.hbm_bytes and self.host_bytes <= self.target.host_bytes
        return not self.failure and within

    @property
    def bound(self) -> str:
        """What the time goes to first: "compute", "memory", "network" or "host" (the link to its memory)."""
        times = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "network": self.network_seconds,
            "host": self.host_seconds,
        }
        return max(times, key=times.get)

    @property
    def mfu(self) -> float:
        """The model's FLOPs over those the device could do in the estimated time."""
        if not self.seconds or not self.flops:
            return 0.0
        dtype = max(self.flops, key=self.flops.get)
        done = self.model_flops or sum(self.flops.values())
        return done / (self.seconds * self.target.peak_flops[dtype])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, derived figures included."""
        values = dataclasses.asdict(self)
        if self.failure:  # infinite, which JSON cannot hold
            values["seconds"] = values["roofline_seconds"] = None
        return values | {"fits": self.fits, "bound": self.bound, "mfu": self.mfu}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Forecast":
        """Return the forecast that `to_dict` turned into plain values."""
        values = {k: v for k, v in values.items() if k not in ("fits", "bound", "mfu")}
        if values["failure"]:
            values["seconds"] = values["roofline_seconds"] = float("inf")
        timeline = tuple((operation, dict(live)) for operation, live in values.pop("timeline"))
        return cls(target=Target(**values.pop("target")), timeline=timeline, **values)

    def __str__(self) -> str:
        """Return the forecast in lines that a person reads."""
        target = self.target
        limit = target.hbm_bytes
        device = "device" if target.num_devices == 1 else f"device of {target.num_devices}"
        over = max(self.peak_bytes - limit, self.host_bytes - target.host_bytes)
        verdict = "fits" if self.fits else f"DOES NOT FIT: {as_size(over)} too much"
        lines = [
            f"{self.name} compiled for {target.name}, per {device}",
            f"  memory   {as_size(self.peak_bytes)} of {as_size(limit)} "
            f"({self.peak_bytes / limit:.0%}), {verdict}",
        ]
        if self.failure:
            lines.append(f"  the compiler stopped: {self.failure}")
        for label, size in sorted(self.breakdown.items(), key=lambda item: -item[1]):
            if size >= 0.001 * self.peak_bytes:
                lines.append(f"    {label:<32} {as_size(size):>10}  {size / self.peak_bytes:6.1%}")
        if self.host_bytes:
            held = f"{as_size(self.host_bytes)} of {as_size(target.host_bytes)}"
            lines.append(f"  host     {held} in the host's memory")
        if self.failure:
            return "\n".join(lines)
        dtype = max(self.flops, key=self.flops.get, default="bf16")
        sent = ", ".join(f"{axis} {as_size(size)}" for axis, size in self.collective_bytes.items())
        lines += [
            f"  estimate {as_time(self.seconds)} a run, {self.bound} bound, MFU {self.mfu:.1%}"
            f" (efficiency {target.efficiency:g})",
            f"    compute  {as_time(self.compute_seconds):>10}  "
            f"{sum(self.flops.values()) / 1e12:.4g} TFLOP of matrix products "
            f"at {target.peak_flops[dtype] / 1e12:.0f} TFLOP/s",
            f"    memory   {as_time(self.memory_seconds):>10}  {as_size(self.bytes_moved)} moved "
            f"at {target.hbm_bandwidth / 1e9:.0f} GB/s",
            f"    network  {as_time(self.network_seconds):>10}  {sent or 'nothing'} sent, "
            f"{as_time(self.exposed_network_seconds)} with nothing beside it",
            f"    roofline {as_time(self.roofline_seconds):>10}  operation by operation",
        ]
        if self.host_bytes_moved:
            speed = f"{target.host_link_bandwidth / 1e9:.0f} GB/s"
            lines.insert(
                -1,
                f"    host     {as_time(self.host_seconds):>10}  {as_size(self.host_bytes_moved)} moved at "
                f"{speed}, {as_time(self.exposed_host_seconds)} with nothing beside it",
            )
        if self.compiler_seconds:
            lines.append(f"    compiler {as_time(self.compiler_seconds):>10}  its own cycle estimates")
        if self.model_flops:
            ratio = sum(self.flops.values()) / self.model_flops
            silent = self.silent_kernels
            kernels = f" and {silent} kernel calls' uncounted ones" if silent else ""
            lines.append(f"  the program does {ratio:.2f} x the model's FLOPs{kernels}; compiled in "
                         f"{self.compile_wall_seconds:.0f} s")  # fmt: skip
        return "\n".join(lines)

    def plot(self, path) -> None:
        """Write a picture of memory over the program, with the device's limit, as PNG."""
        title = f"{self.name} compiled for {self.target.name}"
        device, limit = self.target.name, self.target.hbm_bytes
        memory_plot.plot(path, title, device, limit, self.peak_bytes, self.breakdown, self.timeline)
