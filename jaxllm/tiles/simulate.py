"""Schedule a graph on a machine, event by event: for machines that are here and for those that are not."""

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxllm.errors import UserError
from jaxllm.tiles.cost_model import CostModel
from jaxllm.tiles.graph import INVALIDATE, MERGE, WONT_USE, Graph, Task
from jaxllm.tiles.machines import HOST, Machine
from jaxllm.tiles.memory import Memory
from jaxllm.tiles.policies import get_policy

WINDOW = 10_000  # tasks that are submitted and not done, at most; StarPU's usual limit


@dataclass(frozen=True)
class Span:
    """A task on a worker, in seconds."""

    task: int
    worker: int
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """Who runs what and when, and what moves; `execute` does it.

    `actions` are in an order in which every action finds what it needs: ("run", task, worker),
    ("merge", task, worker, keys), ("copy", key, from, to) and ("drop", key, node).
    """

    graph: Graph
    machine: Machine
    policy: str
    actions: list[tuple]
    spans: list[Span]
    seconds: float  # of the whole
    moved: int  # bytes between memories
    evictions: int
    peak: list[int]  # bytes in each memory, the host's first
    busy: list[float]  # seconds of each worker
    start: dict[int, int]  # the memory in which each given tile lies at first
    placed: dict[int, int]  # and each that is left in the end; a device's if there is a copy on the host too

    @property
    def idle(self) -> float:
        """The share of the workers' time in which they run nothing."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0

    def order(self) -> list[int]:
        """Return the numbers of the tasks that run, in the order in which they begin."""
        return [action[1] for action in self.actions if action[0] in ("run", "merge")]


def simulate(
    graph: Graph, machine: Machine, costs: CostModel, policy: str = "dmdas", *, window: int = WINDOW,
    placed: Mapping[int, int] | None = None, progress: Callable[[int], None] | None = None,
) -> Schedule:  # fmt: skip
    """Schedule a graph.

    Args:
      graph: of tasks.
      machine: workers, memories and links.
      costs: seconds of each kernel on each kind of worker.
      policy: one of `policies.POLICIES`.
      window: tasks that are submitted and not done, at most.
      placed: the memories in which given tiles lie at first, if not the host's.
      progress: is told the number of tasks done, now and then.

    Raises:
      UserError: an unknown policy, a cost model of other ops, a task that fits no worker's memory, or a full
        host.
    """
    make = get_policy(policy)
    run = _Run(graph, machine, costs, placed or {})
    run.policy = make(run)
    return run.go(policy, window, progress)


def check_fits(graph: Graph, machine: Machine) -> None:
    """Check that the tiles of each task fit the memory of every worker together.

    Raises:
      UserError: names the task, and the bytes.
    """
    room = min(machine.capacities[worker.node] for worker in machine.workers)
    largest = max(graph.tasks, key=lambda task: _bytes(graph, task), default=None)
    if largest is not None and _bytes(graph, largest) > room:
        raise UserError(
            f"task {graph.label(largest)} needs {_bytes(graph, largest)} bytes of tiles at once and a device "
            f"of {machine.name} has {room}; use smaller tiles"
        )


def _bytes(graph: Graph, task: Task) -> int:
    return sum(graph.nbytes[h] for h in set(task.handles)) if task.kernel >= 0 else 0


class _Run:
    """The state of a simulation, and the policies' view of the machine."""

    def __init__(self, graph: Graph, machine: Machine, costs: CostModel, placed: Mapping[int, int]):
        check_fits(graph, machine)
        self.graph, self.machine, self.now = graph, machine, 0.0
        kinds = {kind: costs.seconds(graph, kind) for kind in {worker.kind for worker in machine.workers}}
        self._seconds = [kinds[worker.kind] for worker in machine.workers]
        self._nodes = [worker.node for worker in machine.workers]
        self.num_workers = len(machine.workers)
        self.actions: list[tuple] = []
        self._start = {handle: placed.get(handle, HOST) for handle in graph.given}
        self.memory = Memory(machine, graph.nbytes, self._start, self.actions)
        self.spans: list[Span] = []
        self.busy = [0.0] * self.num_workers
        self._running: list[tuple | None] = [None] * self.num_workers  # task, keys it reads, keys it writes
        self._staged: list[tuple | None] = [None] * self.num_workers  # the same, and when all is there
        self._waiting: list[Task | None] = [None] * self.num_workers  # popped, and there is no room
        self._ends = [0.0] * self.num_workers
        self._own: dict[int, list[tuple[int, int]]] = {}  # handle: the workers' own copies of it
        self._locked: set[int] = set()
        self._blocked: dict[int, deque[Task]] = {}  # locked handle: tasks that wait for it
        self._events: list[tuple[float, int, int]] = []
        self._waits = list(graph.waits_for)
        self._done = 0
        self._fed: set[int] = set()
        self.policy = None

    # What policies see.

    def free_at(self, worker: int) -> float:
        staged = self._staged[worker]
        return self._ends[worker] + (self._seconds[worker][staged[0].kernel] if staged else 0.0)

    def seconds(self, task: Task, worker: int) -> float:
        return self._seconds[worker][task.kernel]

    def transfer_seconds(self, task: Task, worker: int) -> float:
        return self.memory.transfer_seconds(task.reads, self._nodes[worker])

    def missing_bytes(self, task: Task, worker: int) -> int:
        return self.memory.missing_bytes(task.reads, self._nodes[worker])

    # The events.

    def go(self, policy: str, window: int, progress) -> Schedule:
        tasks = self.graph.tasks
        for task in tasks:
            self._waits[task.number] += 1  # until it is submitted
        self._submitted = 0
        self._submit(window)
        self._feed_all()
        while self._events:
            self.now, _, worker = heapq.heappop(self._events)
            self._finish(worker)
            self._submit(window)
            self._fed.add(worker)
            self._feed_all()
            if progress and self._done % 1000 == 0:
                progress(self._done)
        if self._done < len(tasks):
            stuck = next(t for t in (*self._waiting, *tasks) if t is not None and self._waits[t.number] >= 0)
            raise UserError(
                f"task {self.graph.label(stuck)} cannot run: its tiles do not fit beside those in use; "
                "use smaller tiles"
            )
        return Schedule(
            self.graph, self.machine, policy, self.actions, self.spans,
            seconds=max((span.end for span in self.spans), default=0.0), moved=self.memory.moved,
            evictions=self.memory.evictions, peak=self.memory.peak, busy=self.busy, start=self._start,
            placed={handle: max(self.memory.copies[handle]) for handle in self.graph.left},
        )  # fmt: skip

    def _submit(self, window: int) -> None:
        tasks = self.graph.tasks
        while self._submitted < len(tasks) and self._submitted < self._done + window:
            task = tasks[self._submitted]
            self._submitted += 1
            self._release(task.number, by=task.number % self.num_workers)

    def _release(self, number: int, by: int) -> None:
        """Count one thing less that a task waits for; push it, or apply it if it is a hint."""
        todo = [number]
        while todo:
            number = todo.pop()
            self._waits[number] -= 1
            if self._waits[number]:
                continue
            task = self.graph.tasks[number]
            if task.kernel >= 0:
                self._ready(task, by)
                continue
            for handle in task.handles:
                if task.hint is INVALIDATE:
                    self.memory.invalidate(handle)
                elif task.hint is WONT_USE:
                    self.memory.wont_use(handle, self.now)
            self._waits[number] = -1
            self._done += 1
            todo += self.graph.successors[number]

    def _ready(self, task: Task, by: int) -> None:
        """Give a task to the policy once nobody else adds to what it adds to."""
        for handle in task.locks:
            if handle in self._locked:
                self._blocked.setdefault(handle, deque()).append(task)
                return
        self._locked.update(task.locks)
        worker = self.policy.push(task, by)
        if worker is None:
            self._fed.update(w for w in range(self.num_workers) if self._running[w] is None)
            return
        self._fed.add(worker)
        if self.policy.ahead:
            for handle in task.reads:
                self.memory.prefetch(handle, self._nodes[worker], self.now)

    def _feed_all(self) -> None:
        while self._fed:
            worker = self._fed.pop()
            while self._feed(worker):
                pass

    def _feed(self, worker: int) -> bool:
        """Begin what a worker has staged, or stage the next task; return whether there was something."""
        if self._running[worker] is None and self._staged[worker] is not None:
            self._begin(worker)
            return True
        if self._staged[worker] is not None or (self._running[worker] is not None and not self.policy.ahead):
            return False
        task = self._waiting[worker] or self.policy.pop(worker)
        if task is None:
            return False
        self._staged[worker] = self._stage(task, worker)
        self._waiting[worker] = None if self._staged[worker] else task
        return self._staged[worker] is not None

    def _keys(self, task: Task, worker: int):
        """Return the keys of what a task reads and of what it writes."""
        if task.hint is MERGE:
            own = self._own.get(task.handles[0], [])
            return (*task.reads, *own), task.writes
        if not task.redux:
            return task.reads, task.writes
        own = tuple((handle, worker) for handle in task.redux)
        return (*task.reads, *(key for key in own if key in self.memory.copies)), (*task.writes, *own)

    def _stage(self, task: Task, worker: int) -> tuple | None:
        """Bring a task's inputs and make room for its outputs; return what `_staged` holds."""
        node, memory, ready, pinned = self._nodes[worker], self.memory, self.now, []
        reads, writes = self._keys(task, worker)
        scratch = self.graph.work[task.kernel][2]
        steps = [(memory.fetch, key) for key in reads] + [(memory.reserve, key) for key in writes]
        for bring, key in steps:
            arrival = bring(key, node, self.now)
            if arrival is None:
                break
            pinned.append(key)
            ready = max(ready, arrival)
        else:
            arrival = memory.scratch(scratch, node, self.now) if scratch else self.now
            if arrival is not None:
                return task, reads, writes, max(ready, arrival)
        for key in pinned:
            memory.unpin(key, node)
        return None

    def _begin(self, worker: int) -> None:
        task, reads, writes, ready = self._staged[worker]
        self._staged[worker] = None
        start = max(self.now, ready)
        seconds = self._seconds[worker][task.kernel]
        if task.hint is MERGE:
            own = tuple(self._own.get(task.handles[0], ()))
            seconds *= len(own)
            self.actions.append(("merge", task.number, worker, own))
        else:
            self.actions.append(("run", task.number, worker))
        self._running[worker], self._ends[worker] = (task, reads, writes), start + seconds
        self.busy[worker] += seconds
        self.spans.append(Span(task.number, worker, start, start + seconds))
        heapq.heappush(self._events, (start + seconds, task.number, worker))

    def _finish(self, worker: int) -> None:
        (task, reads, writes), node, memory = self._running[worker], self._nodes[worker], self.memory
        self._running[worker] = None
        for key in reads:
            memory.unpin(key, node)
        for key in writes:
            memory.unpin(key, node)
            memory.wrote(key, node, self.now)
        scratch = self.graph.work[task.kernel][2]
        if scratch:
            memory.scratch(-scratch, node, self.now)
        if task.hint is MERGE:
            for key in self._own.pop(task.handles[0], ()):
                memory.invalidate(key)
                del memory.copies[key]
        for handle in task.redux:
            own = self._own.setdefault(handle, [])
            if (handle, worker) not in own:
                own.append((handle, worker))
        self._waits[task.number] = -1
        self._done += 1
        self._locked.difference_update(task.locks)
        for number in self.graph.successors[task.number]:
            self._release(number, worker)
        for handle in task.locks:
            waiting = self._blocked.get(handle)
            while waiting and handle not in self._locked:
                self._ready(waiting.popleft(), worker)


def bounds(graph: Graph, machine: Machine, costs: CostModel) -> dict[str, float]:
    """Return the seconds that no schedule can beat.

    Returns:
      work: all tasks shared evenly by the workers, each at the fastest kind's speed.
      path: the longest chain of tasks that wait for each other.
      bytes: what must reach a device at least once, over all links from the host.
    """
    kinds = [costs.seconds(graph, kind) for kind in {worker.kind for worker in machine.workers}]
    fastest = [min(times) for times in zip(*kinds, strict=True)]
    longest = graph.longest_path_after(fastest)
    work = sum(fastest[task.kernel] for task in graph.tasks if task.kernel >= 0)
    nodes = {worker.node for worker in machine.workers} - {HOST}
    channels = {
        link.channel: link.bandwidth for (a, b), link in machine.links.items() if a == HOST and b in nodes
    }
    read = {handle for task in graph.tasks for handle in task.reads} & graph.given
    needed = (
        sum(graph.nbytes[handle] for handle in read) if HOST not in {w.node for w in machine.workers} else 0
    )
    return {
        "work": work / len(machine.workers),
        "path": max(longest, default=0.0),
        "bytes": needed / sum(channels.values()) if channels else 0.0,
    }


def set_priorities(graph: Graph, seconds: Sequence[float], levels: int = 64) -> None:
    """Set the tasks' priorities by how long the longest chain is that begins with each.

    Args:
      graph: is changed.
      seconds: of each kernel.
      levels: how many priorities there are: with fewer, residency decides among more tasks.
    """
    longest = graph.longest_path_after(seconds)
    top = max(longest, default=0.0) or 1.0
    for task in graph.tasks:
        task.priority = int(levels * longest[task.number] / top)
