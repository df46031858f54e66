"""The picture of a program's memory over its operations."""

from jaxllm.atomic import write_figure
from jaxllm.targets.units import as_size, size_unit

# Largest first in this order, so that a picture's colours mean the same from run to run.
_ORDER = ("parameters", "optimizer", "state", "batch", "cache", "arguments", "outputs", "gradients",
          "activations", "recomputed", "backward", "workspace", "temporaries", "unattributed",
          "code")  # fmt: skip


def plot(path, title: str, device: str, limit: int, peak: int, breakdown: dict, timeline: tuple) -> None:
    """Write memory over the program's operations, stacked by use, with the device's limit, as PNG.

    Args:
      path: of the picture.
      title: what was compiled, and for which device.
      device: its name, for the line at its limit.
      limit: bytes that the device holds.
      peak: bytes that the program needs.
      breakdown: of the peak, bytes by what they are for.
      timeline: (operation, live temporaries by label) in the order they run.
    """
    from matplotlib.figure import Figure

    scale, unit = size_unit(max(peak, 1))
    layers = _layers(peak, breakdown, timeline)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    steps = range(len(timeline)) if timeline else range(2)
    colours = _colours([name for name, _ in layers])
    axes.stackplot(
        steps,
        [[size / scale for size in sizes] for _, sizes in layers],
        labels=[name for name, _ in layers],
        colors=colours,
        step="post",
        linewidth=0,
    )
    axes.axhline(peak / scale, color="black", linestyle=":", linewidth=1)
    axes.annotate(
        f"peak {peak / scale:.2f} {unit}",
        (0, peak / scale), xytext=(4, 3), textcoords="offset points", fontsize=9,
    )  # fmt: skip
    if limit < 3 * peak:
        axes.axhline(limit / scale, color="red", linewidth=1.5)
        axes.annotate(
            f"{device}: {limit / scale:.2f} {unit}",
            (0, limit / scale), xytext=(4, 3), textcoords="offset points", fontsize=9, color="red",
        )  # fmt: skip
        axes.set_ylim(0, 1.08 * max(limit, peak) / scale)
    else:
        axes.set_ylim(0, 1.12 * peak / scale)
        axes.set_title(f"the device holds {as_size(limit)}", loc="right", fontsize=9, color="red")
    axes.set_xlim(0, max(len(steps) - 1, 1))
    axes.set_xlabel("operations, in the order they run (a loop's body once)")
    axes.set_ylabel(f"memory of a device, {unit}")
    axes.set_title(title, loc="left", fontsize=11)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right", fontsize=9, frameon=False)
    write_figure(path, figure, dpi=120)


def _layers(peak: int, breakdown: dict, timeline: tuple, most: int = 12) -> list[tuple[str, list[int]]]:
    """Return (label, bytes at each point), what is there throughout first, the smallest joined."""
    points = [live for _, live in timeline] or [{}, {}]
    passing = {label for live in points for label in live}
    fixed = {label: size for label, size in breakdown.items() if label not in passing}
    layers = [(label, [size] * len(points)) for label, size in fixed.items()]
    layers += [(label, [live.get(label, 0) for live in points]) for label in passing]
    layers.sort(key=lambda layer: -max(layer[1]))
    seen = [layer for layer in layers if max(layer[1]) > 0.003 * peak]
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
