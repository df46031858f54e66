"""A schedule as a picture and as a trace: who ran what, when."""

import json
from collections.abc import Sequence
from pathlib import Path

from jaxllm.atomic import write_figure, write_file
from jaxllm.tiles.simulate import Schedule

_DRAWN = 4000  # bars beyond which a picture shows nothing more


def write_gantt(path: str | Path, schedules: Sequence[Schedule]) -> None:
    """Draw schedules of one graph one above the other: a row a worker, a colour a kind of task."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    graph = schedules[0].graph
    spent: dict[str, float] = {}
    for schedule in schedules:
        for span in schedule.spans:
            name = _name(schedule, span)
            spent[name] = spent.get(name, 0.0) + span.end - span.start
    names = sorted(spent, key=spent.get, reverse=True)
    colours = {name: colormaps["tab20"](i % 20) for i, name in enumerate(names)}
    rows = [len(schedule.machine.workers) for schedule in schedules]
    figure = Figure(figsize=(12, 1 + 0.9 * len(schedules) + 0.22 * sum(rows)), layout="constrained")
    axes = figure.subplots(len(schedules), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    for axis, schedule in zip(axes, schedules, strict=True):
        longest = sorted(schedule.spans, key=lambda span: span.start - span.end)[:_DRAWN]
        for worker in range(len(schedule.machine.workers)):
            mine = [span for span in longest if span.worker == worker]
            bars = [(1e3 * span.start, 1e3 * (span.end - span.start)) for span in mine]
            axis.broken_barh(bars, (worker + 0.05, 0.9), color=[colours[_name(schedule, s)] for s in mine])
        axis.set_yticks([i + 0.5 for i in range(len(schedule.machine.workers))],
                        [worker.name for worker in schedule.machine.workers], fontsize=7)  # fmt: skip
        axis.set_ylim(len(schedule.machine.workers), 0)
        axis.set_title(
            f"{schedule.policy}: {1e3 * schedule.seconds:.4g} ms, {schedule.moved / 1e6:.4g} MB moved, "
            f"{schedule.idle:.0%} idle", fontsize=9, loc="left",
        )  # fmt: skip
    axes[-1].set_xlabel(f"milliseconds; {len(graph.tasks)} tasks")
    axes[-1].set_xlim(left=0)
    handles = [Patch(color=colours[name], label=name) for name in names[:12]]
    figure.legend(handles=handles, fontsize=6, ncols=12, loc="outside upper center")
    write_figure(path, figure)


def write_trace(path: str | Path, schedule: Schedule) -> None:
    """Write a schedule as Chrome's trace events, which Perfetto (https://ui.perfetto.dev) shows."""
    events = [
        {"ph": "M", "pid": 0, "tid": i, "name": "thread_name", "args": {"name": worker.name}}
        for i, worker in enumerate(schedule.machine.workers)
    ]
    for span in schedule.spans:
        task = schedule.graph.tasks[span.task]
        events.append({
            "ph": "X", "pid": 0, "tid": span.worker, "name": _name(schedule, span),
            "ts": 1e6 * span.start, "dur": 1e6 * (span.end - span.start),
            "args": {"task": schedule.graph.label(task)},
        })  # fmt: skip
    write_file(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())


def _name(schedule: Schedule, span) -> str:
    task = schedule.graph.tasks[span.task]
    return schedule.graph.kernels[task.kernel].op.name
