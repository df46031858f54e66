"""What `jaxllm plan` prints: the plans in order of their step's time, and what the chosen one comes to."""

import math
from collections.abc import Sequence

from jaxllm.targets.forecast import Forecast
from jaxllm.targets.tiled import Simulation
from jaxllm.targets.units import as_size, as_time

_TITLES = ("", "precision", "optimizer", "remat", "offload", "parts", "data x fsdp x tensor", "peak", "step",
           "tokens/s", "MFU", "by", "why")  # fmt: skip
_SHARED = slice(1, 6)  # columns that one line above says where all rows have the same
_MOST_LABELS = 6  # of what the bytes are for


def plan_table(rows: Sequence, limit: int) -> str:
    """Return plans as text, a line each: the chosen one, those that fit by time, those that do not.

    Of plans that differ only in mesh and parts the first stands for those that nobody compiled.

    Args:
      rows: `planner.Row`s in order.
      limit: how many lines.
    """
    shown = _shown(rows, limit)
    lines = [_cells(number, row) for number, row in enumerate(shown, 1)]
    columns = range(len(_TITLES))
    alike = [i for i in columns[_SHARED] if len(shown) > 1 and len({line[i] for line in lines}) == 1]
    lines = [[line[i] for i in columns if i not in alike] for line in (_TITLES, *lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if alike:
        same = _cells(1, shown[0])
        text.insert(0, "all of them: " + ", ".join(f"{_TITLES[i]} {same[i]}" for i in alike))
    hidden = len(rows) - len(shown)
    return "\n".join(text + [f"... and {hidden:,} more, other meshes and parts among them"] * (hidden > 0))


def plan_summary(row, steps: int) -> str:
    """Return how long a run of the chosen plan takes, and where a device's bytes go.

    Args:
      row: the `planner.Row`.
      steps: of the run.
    """
    tokens = row.config.tokens_per_step
    lines = [
        f"{tokens / row.seconds:,.0f} tokens/s; {steps:,} steps, {steps * tokens:,} tokens, take "
        f"{_long(steps * row.seconds)}, evaluations and checkpoints not counted"
    ]
    if isinstance(row.forecast, Forecast):
        parts = sorted(row.forecast.breakdown.items(), key=lambda part: -part[1])
        rest = sum(size for _, size in parts[_MOST_LABELS:])
        told = [*parts[:_MOST_LABELS], ("other", rest)] if rest else parts[:_MOST_LABELS]
        where = ", ".join(f"{label} {as_size(size)}" for label, size in told)
        lines.append(f"a device's {as_size(row.peak_bytes)}: {where}")
    return "\n".join(lines)


def _shown(rows, limit: int) -> list:
    """Return what fills so many lines: two thirds for plans that fit, or more where few do not."""
    kinds, kept = set(), []
    for row in rows:
        c = row.config
        kind = (c.precision, c.optim.name, c.model.remat, c.offload, c.engine)
        if row.forecast is not None or kind not in kinds:
            kept.append(row)
        kinds.add(kind)
    if len(kept) < limit:
        kept = list(rows)
    fitting, rest = [row for row in kept if row.fits], [row for row in kept if not row.fits]
    others = min(len(rest), max(limit // 3, limit - len(fitting)))
    return fitting[: limit - others] + rest[:others]


def _cells(number: int, row) -> tuple[str, ...]:
    c, about = row.config, "" if row.forecast else "~"
    endless = math.isinf(row.seconds)
    return (
        str(number), c.precision, c.optim.name, c.model.remat, c.offload if c.engine == "jit" else "tiles",
        str(c.accumulate), f"{c.mesh.data} x {c.mesh.fsdp} x {c.mesh.tensor}",
        about + as_size(row.peak_bytes) if row.peak_bytes else "",
        "" if endless else about + as_time(row.seconds),
        "" if endless else f"{about}{c.tokens_per_step / row.seconds:,.0f}",
        "" if endless else f"{100 * row.mfu:.0f} %", _judge_of(row), row.reason,
    )  # fmt: skip


def _judge_of(row) -> str:
    if row.forecast is None:
        return "estimate"
    return "simulator" if isinstance(row.forecast, Simulation) else "compiler"


def _long(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"
