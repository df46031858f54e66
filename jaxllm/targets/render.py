"""A forecast as a table and as a picture."""

from jaxllm.atomic import write_figure
from jaxllm.targets.forecast import Forecast

# Largest first in this order, so that a picture's colours mean the same from run to run.
_ORDER = ("parameters", "optimizer", "state", "batch", "cache", "arguments", "outputs", "gradients",
          "activations", "recomputed", "backward", "workspace", "temporaries", "unattributed",
          "code")  # fmt: skip


def table(forecast: Forecast) -> str:
    """Return the forecast in lines that a person reads."""
    target = forecast.target
    limit = target.hbm_bytes
    device = "device" if target.num_devices == 1 else f"device of {target.num_devices}"
    over = max(forecast.peak_bytes - limit, forecast.host_bytes - target.host_bytes)
    verdict = "fits" if forecast.fits else f"DOES NOT FIT: {_size(over)} too much"
    lines = [
        f"{forecast.name} compiled for {target.name}, per {device}",
        f"  memory   {_size(forecast.peak_bytes)} of {_size(limit)} "
        f"({forecast.peak_bytes / limit:.0%}), {verdict}",
    ]
    if forecast.failure:
        lines.append(f"  the compiler stopped: {forecast.failure}")
    for label, size in sorted(forecast.breakdown.items(), key=lambda item: -item[1]):
        if size >= 0.001 * forecast.peak_bytes:
            lines.append(f"    {label:<32} {_size(size):>10}  {size / forecast.peak_bytes:6.1%}")
    if forecast.host_bytes:
        held = f"{_size(forecast.host_bytes)} of {_size(target.host_bytes)}"
        lines.append(f"  host     {held} in the host's memory")
    if forecast.failure:
        return "\n".join(lines)
    dtype = max(forecast.flops, key=forecast.flops.get, default="bf16")
    sent = ", ".join(f"{axis} {_size(size)}" for axis, size in forecast.collective_bytes.items())
    lines += [
        f"  estimate {_time(forecast.seconds)} a run, {forecast.bound} bound, MFU {forecast.mfu:.1%}"
        f" (efficiency {target.efficiency:g})",
        f"    compute  {_time(forecast.compute_seconds):>10}  "
        f"{sum(forecast.flops.values()) / 1e12:.4g} TFLOP of matrix products "
        f"at {target.peak_flops[dtype] / 1e12:.0f} TFLOP/s",
        f"    memory   {_time(forecast.memory_seconds):>10}  {_size(forecast.bytes_moved)} moved "
        f"at {target.hbm_bandwidth / 1e9:.0f} GB/s",
        f"    network  {_time(forecast.network_seconds):>10}  {sent or 'nothing'} sent, "
        f"{_time(forecast.exposed_network_seconds)} with nothing beside it",
        f"    roofline {_time(forecast.roofline_seconds):>10}  operation by operation",
    ]
    if forecast.host_bytes_moved:
        speed = f"{target.host_link_bandwidth / 1e9:.0f} GB/s"
        lines.insert(
            -1,
            f"    host     {_time(forecast.host_seconds):>10}  {_size(forecast.host_bytes_moved)} moved at "
            f"{speed}, {_time(forecast.exposed_host_seconds)} with nothing beside it",
        )
    if forecast.compiler_seconds:
        lines.append(f"    compiler {_time(forecast.compiler_seconds):>10}  its own cycle estimates")
    if forecast.model_flops:
        ratio = sum(forecast.flops.values()) / forecast.model_flops
        silent = forecast.silent_kernels
        kernels = f" and {silent} kernel calls' uncounted ones" if silent else ""
        lines.append(f"  the program does {ratio:.2f} x the model's FLOPs{kernels}; compiled in "
                     f"{forecast.compile_wall_seconds:.0f} s")  # fmt: skip
    return "\n".join(lines)


def plot(forecast: Forecast, path) -> None:
    """Write memory over the program's operations, stacked by use, with the device's limit, as PNG."""
    from matplotlib.figure import Figure

    scale, unit = _unit(max(forecast.peak_bytes, 1))
    layers = _layers(forecast)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    steps = range(len(forecast.timeline)) if forecast.timeline else range(2)
    colours = _colours([name for name, _ in layers])
    axes.stackplot(
        steps,
        [[size / scale for size in sizes] for _, sizes in layers],
        labels=[name for name, _ in layers],
        colors=colours,
        step="post",
        linewidth=0,
    )
    axes.axhline(forecast.peak_bytes / scale, color="black", linestyle=":", linewidth=1)
    axes.annotate(
        f"peak {forecast.peak_bytes / scale:.2f} {unit}",
        (0, forecast.peak_bytes / scale), xytext=(4, 3), textcoords="offset points", fontsize=9,
    )  # fmt: skip
    limit = forecast.target.hbm_bytes
    if limit < 3 * forecast.peak_bytes:
        axes.axhline(limit / scale, color="red", linewidth=1.5)
        axes.annotate(
            f"{forecast.target.name}: {limit / scale:.2f} {unit}",
            (0, limit / scale), xytext=(4, 3), textcoords="offset points", fontsize=9, color="red",
        )  # fmt: skip
        axes.set_ylim(0, 1.08 * max(limit, forecast.peak_bytes) / scale)
    else:
        axes.set_ylim(0, 1.12 * forecast.peak_bytes / scale)
        axes.set_title(f"the device holds {_size(limit)}", loc="right", fontsize=9, color="red")
    axes.set_xlim(0, max(len(steps) - 1, 1))
    axes.set_xlabel("operations, in the order they run (a loop's body once)")
    axes.set_ylabel(f"memory of a device, {unit}")
    axes.set_title(f"{forecast.name} compiled for {forecast.target.name}", loc="left", fontsize=11)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right", fontsize=9, frameon=False)
    write_figure(path, figure, dpi=120)


def _layers(forecast: Forecast, most: int = 12) -> list[tuple[str, list[int]]]:
    """Return (label, bytes at each point), what is there throughout first, the smallest joined."""
    points = [live for _, live in forecast.timeline] or [{}, {}]
    passing = {label for live in points for label in live}
    fixed = {label: size for label, size in forecast.breakdown.items() if label not in passing}
    layers = [(label, [size] * len(points)) for label, size in fixed.items()]
    layers += [(label, [live.get(label, 0) for live in points]) for label in passing]
    layers.sort(key=lambda layer: -max(layer[1]))
    seen = [layer for layer in layers if max(layer[1]) > 0.003 * forecast.peak_bytes]
    kept, rest = seen[: most - 1], [layer for layer in layers if layer not in seen[: most - 1]]
    if rest:
        kept.append(("other", [sum(sizes) for sizes in zip(*(s for _, s in rest), strict=True)]))
    return sorted(kept, key=lambda layer: (layer[0] not in fixed, _rank(layer[0]), layer[0]))


def _rank(label: str) -> int:
    group = label.split(":")[0]
    return _ORDER.index(group) if group in _ORDER else len(_ORDER)


def _colours(labels: list[str]) -> list:
    """Return one hue a group and one shade a scope, so that related layers look related."""
    import matplotlib

    hues = {"parameters": "Blues", "optimizer": "Purples", "gradients": "Oranges", "activations": "Greens",
            "recomputed": "YlGn", "backward": "Reds", "temporaries": "YlOrBr", "code": "pink"}  # fmt: skip
    used: dict[str, int] = {}
    colours = []
    for label in labels:
        map_name = hues.get(label.split(":")[0], "Greys")
        used[map_name] = used.get(map_name, 0) + 1
        colours.append(matplotlib.colormaps[map_name](0.75 - 0.13 * min(used[map_name] - 1, 4)))
    return colours


def _unit(size: float) -> tuple[float, str]:
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**exponent:
            return float(1024**exponent), unit
    return 1.0, "B"


def _size(size: float) -> str:
    scale, unit = _unit(abs(size))
    return f"{size / scale:.2f} {unit}" if unit != "B" else f"{size:.0f} B"


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.2f} us"
