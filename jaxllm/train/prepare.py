"""A run, checked and built before its first step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from jaxllm import parallel
from jaxllm.errors import UserError
from jaxllm.optim.check_chain import check_order
from jaxllm.short_repr import holding
from jaxllm.train.config import RunConfig
from jaxllm.train.engine import Engine, Parts, Step, jit_engine, on_mesh
from jaxllm.train.state import TrainState, init_state, state_shardings
from jaxllm.train.step import make_eval_step, see
from jaxllm.train.task import Stage, Task, View, begin_batches, check_axes


@dataclass(frozen=True)
class Run:
    """A checked run: nothing in it has been compiled or placed on a device yet."""

    task: Task
    config: RunConfig
    mesh: jax.sharding.Mesh
    shapes: TrainState  # ShapeDtypeStructs with shardings
    batch_shapes: Any  # what a step takes as a batch, over all processes
    steps: tuple[tuple[int, Step], ...]  # of each stage: (the step where it ends, its `train_step`)
    eval_step: Any  # (params, frozen, batch) -> (loss sum, count), jitted
    init_from: Any  # (key, params or None) -> TrainState; an array of the host's memory at a time
    start: Any = None  # parameters to begin with; None: the task draws them
    start_name: str = "given parameters"
    schedule: optax.Schedule | None = None  # of the learning rate; None with an optimizer from outside
    check: Callable[[dict, int, Any], None] = lambda saved, step, folder: None  # may a checkpoint go on?
    views: tuple[View, ...] = ()  # of the last stage: what an evaluation sees
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what it is, for who starts it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r}; {holding(self.shapes.params)})"

    @property
    def train_step(self) -> Step:
        """(state, batch) -> (state, metrics), jitted, donates the state; the last stage's of several."""
        return self.steps[-1][1]

    def train_step_at(self, step: int) -> Step:
        """Return the `train_step` that takes step number `step`, counted from 0."""
        return next((train_step for end, train_step in self.steps if step < end), self.train_step)

    def init(self, key: jax.Array) -> TrainState:
        """Return the state before the first step, on its devices."""
        return self.with_frozen(self.init_from(key, self.start))

    def with_frozen(self, state: TrainState) -> TrainState:
        """Return a state with what the task does not train, on its devices."""
        return dataclasses.replace(state, frozen=self.frozen())

    def frozen(self) -> Any:
        """Return what the task does not train, on its devices; no copy where it lies there already."""
        places = jax.tree.map(lambda x: x.sharding, self.shapes.frozen)
        return jax.device_put(self.task.frozen, places)

    def seen(self, params: Any) -> Any:
        """Return what an evaluation sees of the task's parameters: what the views make of them."""
        return see(self.views, self.frozen(), [None] * len(self.views), params)

    def check_loss(self) -> None:
        """Check what the loss returns, by shapes alone; a step would say the same when it is traced.

        Raises:
          UserError: see `jaxllm.train.task.check_loss`.
        """
        jax.eval_shape(self.eval_step, self.shapes.params, self.shapes.frozen, self.batch_shapes)

    def batches(self) -> Iterator[Any]:
        """Return this process's part of the training batches, with `state()` and `restore(state)`."""
        return begin_batches(self.task)

    def learning_rates(self) -> np.ndarray | None:
        """Return the rate of every step, computed at once: the log should not run code a step."""
        if self.schedule is None:
            return None
        return np.asarray(jax.jit(jax.vmap(self.schedule))(np.arange(self.config.steps)))

    def put(self, batch: Any):
        """Place a process's part of a batch on its devices, split over data and fsdp."""

        def place(x):
            shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
            return jax.make_array_from_process_local_data(batch_sharding(self.mesh, shape), x)

        return jax.tree.map(place, batch)

    def mean_loss(
        self,
        params: Any,
        batches: Iterator[Any],
        *,
        frozen: Any = None,
        before_batch: Callable[[], None] = lambda: None,
    ) -> tuple[float, float]:
        """Return the task's loss over some batches: (mean, what it was divided by).

        Args:
          params: the task's parameters, before any view.
          batches: this process's part of each.
          frozen: what the task does not train, where a state holds it already.
          before_batch: is called before each one.

        Raises:
          UserError: the loss counts nothing.
        """
        sums, frozen = [], self.frozen() if frozen is None else frozen
        for batch in batches:
            before_batch()
            sums.append(self.eval_step(params, frozen, self.put(batch)))
        total, count = (sum(float(one[i]) for one in sums) for i in range(2))
        if not count:
            raise UserError(
                "nothing that is held out counts in the loss (token_count is 0); give a loss that counts some"
            )
        return total / count, count


def prepare(
    task: Task,
    config: RunConfig = RunConfig(),
    *,
    optimizer: optax.GradientTransformation,
    views: Sequence[View] | Sequence[Stage] = (),
    engine: Engine = jit_engine(),
    start: Any = None,
    start_name: str = "given parameters",
    devices: Sequence[jax.Device] | None = None,
    schedule: optax.Schedule | None = None,
    check: Callable[[dict, int, Any], None] | None = None,
    about: Mapping[str, str] = {},
) -> Run:
    """Check a run and build its steps.

    Args:
      task: what is trained.
      config: for how long, and where it writes.
      optimizer: any optax transformation.
      views: functions of the parameters, applied before the loss; or, where they change during the run,
        `Stage`s of them.
      engine: makes the step.
      start: parameters to begin with, structured like the task's; None: it draws them.
      start_name: what to call them.
      devices: which to use, compile-only ones too; None is all.
      schedule: of the learning rate, for the log.
      check: (the config of a checkpoint, its step, its folder) -> None; raises where this run must not go
        on from it, for reasons that the config's class does not know.
      about: what the run is, {"model": "GPT-2 ..."}: lines that are shown when it starts.

    Raises:
      UserError: task, parameters and devices do not fit together.
    """
    mesh = parallel.make_mesh(config.mesh, devices)
    batch_shapes = _batch_shapes(task, mesh)

    def init(key, params):  # the copy: what is given is the user's, and a step takes its state's memory
        given = None if params is None else lambda _: jax.tree.map(jnp.copy, params)
        return init_state(given or task.init, optimizer, key)

    shapes = jax.eval_shape(init, jax.random.key(0), None)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), task.frozen)
    shapes = dataclasses.replace(shapes, frozen=frozen)
    check_order(shapes.opt_state)
    start = check_start(start, shapes.params)
    check_axes("axes", task.axes, shapes.params)
    if frozen is not None:
        check_axes("frozen_axes", task.frozen_axes, frozen)
    elif task.frozen_axes is not None:
        raise UserError(
            "frozen_axes= names axes of frozen=, and there is none; give the arrays, or leave it out"
        )
    places = state_shardings(
        shapes, optimizer, task.axes, mesh, offload=config.offload, frozen_axes=task.frozen_axes
    )
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
    stages = tuple(views)
    if not stages or not isinstance(stages[0], Stage):
        stages = (Stage(config.steps, stages),)

    @functools.cache  # stages that see the same share a program
    def train_step(views):
        return engine(Parts(task.loss, optimizer, views, shapes, batch_shapes, mesh))

    return Run(
        task=task,
        config=config,
        mesh=mesh,
        shapes=shapes,
        batch_shapes=batch_shapes,
        steps=tuple((stage.end, train_step(stage.views)) for stage in stages),
        eval_step=jax.jit(on_mesh(mesh, make_eval_step(task.loss, stages[-1].views))),
        init_from=_init_in_turn(init, places),
        start=start,
        start_name=start_name,
        schedule=schedule,
        views=stages[-1].views,
        about=about,
        **({} if check is None else {"check": check}),
    )


def batch_sharding(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Return where an array of a batch lies: its first axis split over data and fsdp."""
    names = ("batch", *[None] * (len(shape) - 1))
    return NamedSharding(mesh, parallel.partition_spec(names, shape, mesh))


def check_start(start: Any, shapes: Any) -> Any:
    """Return parameters to begin with in the types of the task's.

    Raises:
      UserError: names the first parameter that is missing, left over or of another shape.
    """
    if start is None:
        return None

    def by_path(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

    given, wanted = by_path(start), by_path(shapes)
    for name in [*wanted, *given]:
        got, want = (np.shape(tree[name]) if name in tree else None for tree in (given, wanted))
        if got != want:
            raise UserError(
                f"the parameters to start from have {_shown(name, got)}, and the run's {_shown(name, want)}; "
                "give those of the same model, or change the model"
            )
    return jax.tree.map(lambda like, x: x.astype(like.dtype), shapes, start)


def _shown(name, shape) -> str:
    return f"no '{name}'" if shape is None else f"'{name}' of shape {shape}"


def _batch_shapes(task: Task, mesh):
    shapes = task.batch_shapes
    if shapes is None:
        first = next(begin_batches(task), None)
        if first is None:
            raise UserError("the task has no batches: its iterator ended before the first one")

        def whole(x):
            if not np.shape(x):
                raise UserError(f"the task's batch holds {x!r:.60}; each of its arrays needs an axis of rows")
            rows = len(x) * jax.process_count()
            return jax.ShapeDtypeStruct((rows, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))

        shapes = jax.tree.map(whole, first)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, x.shape)), shapes
    )


def _init_in_turn(init, shardings: TrainState):
    """Return init, jitted; of the host's memory an array at a time, since together they may not fit."""
    places, structure = jax.tree.flatten(dataclasses.replace(shardings, frozen=None))
    away = [i for i, place in enumerate(places) if place.memory_kind == parallel.HOST_MEMORY]
    if not away:
        return jax.jit(init, out_shardings=jax.tree.unflatten(structure, places))
    here = [i for i in range(len(places)) if i not in away]
    init = jax.jit(init, inline=True)  # traced once for all

    def some(which):
        def take(key, params):
            leaves = jax.tree.leaves(init(key, params))
            return [leaves[i] for i in which]

        return jax.jit(take, out_shardings=[places[i] for i in which])

    def run(key, params):
        made = {}
        for which in (here, *([i] for i in away)):
            made |= zip(which, some(which)(key, params), strict=True)
        return jax.tree.unflatten(structure, [made[i] for i in range(len(places))])

    return run
