"""Who runs what, and in which order: StarPU's scheduling policies behind one small interface."""

import bisect
from collections import deque
from typing import Protocol

from jaxllm.errors import unknown
from jaxllm.tiles.graph import Task

_LOOK = 32  # tasks of the same priority among which the one with the fewest missing bytes is sought


class View(Protocol):
    """What a policy may ask about the machine."""

    num_workers: int
    now: float

    def free_at(self, worker: int) -> float: ...  # noqa: E704  when it has done the task it has begun
    def seconds(self, task: Task, worker: int) -> float: ...  # noqa: E704
    def transfer_seconds(self, task: Task, worker: int) -> float: ...  # noqa: E704
    def missing_bytes(self, task: Task, worker: int) -> int: ...  # noqa: E704


class Policy(Protocol):
    """Takes tasks when they are ready, gives them to workers when those are free."""

    ahead: bool  # inputs are fetched before the worker is free

    def push(self, task: Task, by: int) -> int | None:
        """Take a ready task; return the worker that it is for, None for any.

        Args:
          task: has nothing left to wait for.
          by: the worker that ran the last task it waited for.
        """

    def pop(self, worker: int) -> Task | None:
        """Return the next task of a worker, or None."""


class Eager:
    """One queue, and the first worker that is free takes its head."""

    ahead = False

    def __init__(self, view: View):
        self._queue: deque[Task] = deque()

    def push(self, task, by):
        self._queue.append(task)

    def pop(self, worker):
        return self._queue.popleft() if self._queue else None


class LocalWorkStealing:
    """A queue for each worker, of what it made ready; one that has none steals a neighbour's oldest."""

    ahead = False

    def __init__(self, view: View):
        self._queues = [deque() for _ in range(view.num_workers)]

    def push(self, task, by):
        self._queues[by].append(task)

    def pop(self, worker):
        if self._queues[worker]:
            return self._queues[worker].pop()
        for step in range(1, len(self._queues)):
            victim = self._queues[(worker + step) % len(self._queues)]
            if victim:
                return victim.popleft()
        return None


class LeastCompletion:
    """The dm family: a task goes, when it is ready, to the worker where it is expected to end first.

    end(w) = max(free(w), now + transfer(w)) + seconds(w), and the least of
    end(w) - min end + transfer(w) is taken (both weights 1, StarPU's default; no energy).

    Args:
      view: of the machine.
      data: count transfers (dmda); without, where tiles lie plays no part (dm).
      sort: run the highest priority first and, of those, what misses the fewest bytes (dmdas).
      decide: of the tasks in a worker's queue, count those that would run before this one (dmdasd).
    """

    ahead = True

    def __init__(self, view: View, *, data: bool = False, sort: bool = False, decide: bool = False):
        self._view, self._data, self._sort, self._decide = view, data, sort, decide
        self._queues: list[list | deque] = [[] if sort else deque() for _ in range(view.num_workers)]
        self._load = [0.0] * view.num_workers  # seconds in each queue
        self._load_of = [{} for _ in range(view.num_workers)]  # priority: seconds

    def push(self, task, by):
        view = self._view
        ends, transfers = [], []
        for worker in range(view.num_workers):
            free = max(view.free_at(worker), view.now) + self._before(task, worker)
            transfer = view.transfer_seconds(task, worker) if self._data else 0.0
            ends.append(max(free, view.now + transfer) + view.seconds(task, worker))
            transfers.append(transfer)
        costs = [end + transfer for end, transfer in zip(ends, transfers, strict=True)]
        worker = costs.index(min(costs))
        if self._sort:
            bisect.insort(self._queues[worker], task, key=_by_priority)
        else:
            self._queues[worker].append(task)
        self._count(task, worker, view.seconds(task, worker))
        return worker

    def pop(self, worker):
        queue = self._queues[worker]
        if not queue:
            return None
        task = self._nearest(queue, worker) if self._sort else queue.popleft()
        self._count(task, worker, -self._view.seconds(task, worker))
        return task

    def _nearest(self, queue, worker):
        best, least = 0, None
        for place, task in enumerate(queue[:_LOOK]):
            if task.priority != queue[0].priority:
                break
            missing = self._view.missing_bytes(task, worker)
            if least is None or missing < least:
                best, least = place, missing
            if not missing:
                break
        return queue.pop(best)

    def _before(self, task, worker):
        if not self._decide:
            return self._load[worker]
        return sum(load for priority, load in self._load_of[worker].items() if priority >= task.priority)

    def _count(self, task, worker, seconds):
        self._load[worker] += seconds
        if self._decide:
            loads = self._load_of[worker]
            loads[task.priority] = loads.get(task.priority, 0.0) + seconds


def _by_priority(task: Task) -> int:
    return -task.priority


POLICIES = {
    "eager": Eager,
    "lws": LocalWorkStealing,
    "dm": LeastCompletion,
    "dmda": lambda view: LeastCompletion(view, data=True),
    "dmdas": lambda view: LeastCompletion(view, data=True, sort=True),
    "dmdasd": lambda view: LeastCompletion(view, data=True, sort=True, decide=True),
}


def get_policy(name: str):
    """Return what makes the policy of this name from a view.

    Raises:
      UserError: an unknown name.
    """
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return POLICIES[name]
