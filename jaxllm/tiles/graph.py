"""A program of tile tasks, submitted in order, and the graph of who waits for whom."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.tiles.access import Mode
from jaxllm.tiles.tensor import Tensor

_NOTHING: tuple[int, ...] = ()


def add(total, part):
    """Return the sum: how most accumulators take in a part."""
    return total + part


def _same(part):
    return (part,)


@dataclass(frozen=True)
class Op:
    """One kind of task.

    `function(*values, **static)` takes the tiles that it reads (R, RW) in the order of the accesses and
    returns those that it writes (W, RW) and the parts that it adds (COMMUTE, REDUX), in that order too.
    Zeros are the empty accumulator of every `merge`.
    """

    name: str
    function: Callable | None  # None: a hint to the runtime, which runs nowhere
    merges: tuple[Callable, ...] = ()  # (accumulator, part) -> accumulator, one for each output; () is `add`


INVALIDATE = Op("invalidate", None)  # drop every copy: a later access must write
WONT_USE = Op("wont_use", None)  # write back to the host, evict first
MERGE = Op("merge", None)  # the workers' own copies of a tile into one


class Kernel(NamedTuple):
    """What tasks share that run the same compiled code: the cost model's key."""

    op: Op
    static: tuple[tuple[str, Any], ...]
    modes: tuple[Mode, ...]
    shapes: tuple[tuple[tuple[int, ...], str], ...]  # (shape, dtype) of each tile


@dataclass(slots=True, eq=False)
class Task:
    """One use of a kernel on tiles."""

    number: int  # in the order of submission
    kernel: int  # index in `Graph.kernels`; -1 of a hint
    handles: tuple[int, ...]
    priority: int = 0
    reads: tuple[int, ...] = _NOTHING  # handles whose value is needed
    writes: tuple[int, ...] = _NOTHING  # handles whose other copies become stale
    locks: tuple[int, ...] = _NOTHING  # handles that one task at a time may add to
    redux: tuple[int, ...] = _NOTHING  # handles of which the worker has a copy of its own
    hint: Op | None = None


@dataclass(eq=False)
class Graph:
    """Tasks, and which of them wait for which."""

    tasks: list[Task]
    successors: list[list[int]]
    waits_for: list[int]  # how many tasks each task waits for
    kernels: list[Kernel]
    work: list[tuple[float, float, int]]  # of each kernel: FLOPs, bytes read and written, scratch bytes
    tensors: list[Tensor]
    nbytes: list[int]  # of each tile
    given: frozenset[int]  # handles with a value before the first task
    left: frozenset[int]  # handles with a value after the last one

    def label(self, task: Task) -> str:
        """Return a task's name, "gemm(x[0,0], w[0,1], y[0,1])"."""
        op = task.hint or self.kernels[task.kernel].op
        return f"{op.name}({', '.join(self.tile_label(handle) for handle in task.handles)})"

    def tile_label(self, handle: int) -> str:
        """Return a tile's name."""
        firsts = [tensor.first for tensor in self.tensors]
        return self.tensors[int(np.searchsorted(firsts, handle, "right")) - 1].label(handle)

    def check_order(self, order: Sequence[int]) -> None:
        """Check that an order of task numbers is one in which every task finds its predecessors done.

        Raises:
          ValueError: it leaves out or repeats a task, or names the first that comes too early.
        """
        if sorted(order) != list(range(len(self.tasks))):
            raise ValueError(f"{len(order)} tasks are not each of the {len(self.tasks)} once")
        left = list(self.waits_for)
        for number in order:
            if left[number]:
                raise ValueError(f"task {number}, {self.label(self.tasks[number])}, comes before its inputs")
            for successor in self.successors[number]:
                left[successor] -= 1

    def longest_path_after(self, seconds: Sequence[float]) -> list[float]:
        """Return, for each task, the length of the longest chain that begins with it.

        Args:
          seconds: of each kernel.
        """
        longest = [0.0] * len(self.tasks)
        for task in reversed(self.tasks):
            own = seconds[task.kernel] if task.kernel >= 0 else 0.0
            longest[task.number] = own + max((longest[s] for s in self.successors[task.number]), default=0.0)
        return longest


@dataclass(eq=False)
class Program:
    """Tasks in the order in which they are submitted.

    Args:
      ordered: add in the order of submission, so that sums are the same bit for bit in every schedule.
      drops: tell the runtime what is invalidated; without, tiles keep their memory, and reading one that
        was invalidated is still an error.
      rests: tell it what will not be used for a while.

    Examples:
      >>> double = Op("double", lambda x: (2 * x,))
      >>> program = Program()
      >>> x = program.tensor("x", (4,), (2,), given=True)
      >>> y = program.tensor("y", (4,), (2,))
      >>> for i in range(2):
      ...     program.submit(double, (Mode.R, x[i]), (Mode.W, y[i]))
      >>> program.invalidate(x)
      >>> program.submit(double, (Mode.R, x[0]), (Mode.W, y[0]))
      Traceback (most recent call last):
      ...
      jaxllm.errors.UserError: task double(x[0], y[0]) reads x[0], which was invalidated; ...
    """

    ordered: bool = False
    drops: bool = True
    rests: bool = True
    tensors: list[Tensor] = field(default_factory=list)
    _tasks: list[Task] = field(default_factory=list)
    _deps: list[set[int]] = field(default_factory=list)
    _kernels: dict[Kernel, int] = field(default_factory=dict)
    _work: list[tuple[float, float, int]] = field(default_factory=list)
    _tiles: list["_Tile"] = field(default_factory=list)

    def tensor(self, name: str, shape, tile_shape, dtype: str = "float32", *, given: bool = False) -> Tensor:
        """Return a new tensor.

        Args:
          name: for the names of tasks.
          shape: of the whole.
          tile_shape: of its tiles.
          dtype: of its elements.
          given: it has a value before the first task.
        """
        tensor = Tensor(name, tuple(shape), tuple(tile_shape), dtype, first=len(self._tiles))
        self.tensors.append(tensor)
        for index in tensor.indices():
            self._tiles.append(_Tile(tensor.shape_of(*index), dtype, tensor.nbytes_of(*index), given, given))
        return tensor

    def has_value(self, handle: int) -> bool:
        """Whether a task submitted now may read a tile."""
        tile = self._tiles[handle]
        return tile.valid or tile.open is Mode.REDUX

    def adding(self, handle: int, mode: Mode = Mode.COMMUTE) -> tuple[Mode, int]:
        """Return the access of a task that adds to a tile, or is the first to, and so writes it."""
        if self.ordered or mode is Mode.COMMUTE:
            mode = Mode.COMMUTE if self.has_value(handle) else Mode.W
        return mode, handle

    def submit(
        self, op: Op, *accesses: tuple[Mode, int], flops: float = 0.0, priority: int = 0, **static
    ) -> None:
        """Add a task.

        Args:
          op: what it does.
          accesses: (mode, handle) of each tile.
          flops: floating-point operations it takes.
          priority: the higher, the sooner, where a policy looks at it.
          static: keyword arguments of the op's function.

        Raises:
          UserError: it reads a tile that has no value.
        """
        modes, handles = zip(*accesses, strict=True)
        shapes = tuple((self._tiles[h].shape, self._tiles[h].dtype) for h in handles)
        kernel = Kernel(op, tuple(sorted(static.items())), modes, shapes)
        if kernel not in self._kernels:
            self._kernels[kernel] = len(self._work)
            twice = (Mode.RW, Mode.COMMUTE, Mode.REDUX)
            moved = sum(self._tiles[h].nbytes * (1 + (mode in twice)) for mode, h in accesses)
            scratch = sum(self._tiles[h].nbytes for mode, h in accesses if mode is Mode.SCRATCH)
            self._work.append((float(flops), float(moved), scratch))
        for mode, handle in accesses:
            if mode is not Mode.REDUX and self._tiles[handle].open is Mode.REDUX:
                self._merge(handle)
        task = Task(
            len(self._tasks), self._kernels[kernel], handles, priority,
            reads=tuple(h for m, h in accesses if m in (Mode.R, Mode.RW, Mode.COMMUTE)),
            writes=tuple(h for m, h in accesses if m in (Mode.W, Mode.RW, Mode.COMMUTE)),
            locks=() if self.ordered else tuple(h for m, h in accesses if m is Mode.COMMUTE),
            redux=tuple(h for m, h in accesses if m is Mode.REDUX),
        )  # fmt: skip
        for handle in task.reads:
            if not self._tiles[handle].valid:
                reason = "was invalidated" if self._tiles[handle].written else "has not been written"
                raise UserError(
                    f"task {_task_label(self, op, handles)} reads {_tile_label(self, handle)}, which "
                    f"{reason}; write it first, or move the invalidation after its last reader"
                )
        self._append(task, accesses)

    def invalidate(self, *tensors: Tensor | int) -> None:
        """Drop every copy of tiles once the tasks so far are done with them; nothing is written back."""
        for handle in filter(self.has_value, _handles(tensors)):
            if self._tiles[handle].open is Mode.REDUX:
                self._merge(handle)
            if self.drops:
                self._append(Task(len(self._tasks), -1, (handle,), hint=INVALIDATE), [(Mode.W, handle)])
            self._tiles[handle].valid = False

    def wont_use(self, *tensors: Tensor | int) -> None:
        """Hint that tiles will not be used for a while: they are written to the host and evicted first."""
        for handle in filter(self.has_value, _handles(tensors)) if self.rests else ():
            self._append(Task(len(self._tasks), -1, (handle,), hint=WONT_USE), [(Mode.R, handle)])

    def graph(self) -> Graph:
        """Return the graph of the tasks so far."""
        for handle, tile in enumerate(self._tiles):
            if tile.open is Mode.REDUX:
                self._merge(handle)
        successors: list[list[int]] = [[] for _ in self._tasks]
        for number, deps in enumerate(self._deps):
            for dep in deps:
                successors[dep].append(number)
        return Graph(
            tasks=list(self._tasks), successors=successors, waits_for=[len(deps) for deps in self._deps],
            kernels=list(self._kernels), work=list(self._work), tensors=list(self.tensors),
            nbytes=[tile.nbytes for tile in self._tiles],
            given=frozenset(h for h, tile in enumerate(self._tiles) if tile.given),
            left=frozenset(h for h, tile in enumerate(self._tiles) if tile.valid),
        )  # fmt: skip

    def _append(self, task: Task, accesses: Iterable[tuple[Mode, int]]) -> None:
        number, deps = task.number, set()
        for mode, handle in accesses:
            if mode is not Mode.SCRATCH:
                if task.hint is WONT_USE:  # it waits for the readers before it too
                    deps.update(self._tiles[handle].readers)
                if self.ordered and mode is Mode.COMMUTE:
                    mode = Mode.RW
                deps.update(self._tiles[handle].access(mode, number))
        deps.discard(number)
        self._tasks.append(task)
        self._deps.append(deps)

    def _merge(self, handle: int) -> None:
        """Add the task that merges the workers' own copies of a tile."""
        tile = self._tiles[handle]
        added = self._tasks[tile.group[0]]
        kernel = self._kernels_by_number(added.kernel)
        adding = [
            h for m, h in zip(kernel.modes, added.handles, strict=True) if m not in (Mode.R, Mode.SCRATCH)
        ]
        place = adding.index(handle)
        merge = kernel.op.merges[place] if kernel.op.merges else add
        merging = Kernel(
            Op(f"merge_{merge.__name__}", _same, (merge,)), (), (Mode.R, Mode.COMMUTE),
            ((tile.shape, tile.dtype),) * 2,
        )  # fmt: skip
        if merging not in self._kernels:
            self._kernels[merging] = len(self._work)
            self._work.append((0.0, 3.0 * tile.nbytes, 0))
        task = Task(
            len(self._tasks), self._kernels[merging], (handle,), added.priority, hint=MERGE,
            reads=(handle,) if tile.base_valid else (), writes=(handle,),
        )  # fmt: skip
        deps = set(tile.base) | set(tile.group)
        self._tasks.append(task)
        self._deps.append(deps)
        tile.open, tile.writers, tile.readers, tile.valid = None, [task.number], [], True

    def _kernels_by_number(self, number: int) -> Kernel:
        return list(self._kernels)[number]


@dataclass(slots=True)
class _Tile:
    """A tile while tasks are submitted: who used it last."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    given: bool
    valid: bool
    written: bool = False
    writers: list[int] = field(default_factory=list)  # one, or all of a group that adds to it
    readers: list[int] = field(default_factory=list)  # since
    open: Mode | None = None  # a group that adds to it and may grow
    base: list[int] = field(default_factory=list)  # what such a group waits for
    group: list[int] = field(default_factory=list)
    base_valid: bool = False

    def access(self, mode: Mode, number: int) -> list[int]:
        """Note a task's access; return the tasks it waits for."""
        if mode is Mode.R:
            self.readers.append(number)
            self.open = None
            return self.writers
        before = self.readers or self.writers
        if mode.adds:
            if self.open is not mode:
                self.open, self.base, self.group, self.base_valid = mode, before, [], self.valid
            self.group.append(number)
            before = self.base
            if mode is Mode.REDUX:
                return before
        else:
            self.open = None
        self.writers = self.group if mode is Mode.COMMUTE else [number]
        self.readers, self.valid, self.written = [], True, True
        return before


def _handles(tensors) -> Iterable[int]:
    for tensor in tensors:
        yield from tensor.handles() if isinstance(tensor, Tensor) else (tensor,)


def _tile_label(program: Program, handle: int) -> str:
    tensor = next(t for t in reversed(program.tensors) if t.first <= handle)
    return tensor.label(handle)


def _task_label(program: Program, op: Op, handles) -> str:
    return f"{op.name}({', '.join(_tile_label(program, handle) for handle in handles)})"
