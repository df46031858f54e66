"""What a run trains: all that the loop knows of it."""

import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.axis_names import is_names
from jaxllm.errors import UserError, brief

# loss(params, batch, key) -> (mean over what the batch counts, sums). sums["token_count"] is what the mean
# was divided by; sums["loss_sum"], if it is there, is what an evaluation reports, without regularisers. The
# key is None in an evaluation, which draws nothing.
LossFunction = Callable[[Any, Any, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]

# view(params, frozen, key) -> params: a differentiable function of parameters, applied before any loss. Its
# key is drawn once a step; None in an evaluation. One that has a method `optimizer_args(key)` passes what
# that returns to the optimizer's update, by name.
View = Callable[[Any, Any, jax.Array | None], Any]

# mean_loss(params, batches) -> (mean, what it was divided by): of a task's loss, on the devices of its run
MeanLoss = Callable[[Any, Iterator[Any]], tuple[float, float]]


# on_metrics(step, numbers): what metrics.jsonl gets, as it gets it; called in the first process alone
OnMetrics = Callable[[int, dict[str, float]], None]


class Every(NamedTuple):
    """A function of a run's parameters, called every so many steps and after the last, in all processes."""

    steps: int
    call: Callable[[int, Any], None]  # (step, the task's parameters before any view); valid during the call


@dataclass(frozen=True)
class Task:
    """A problem to train on. Text is one (`jaxllm.text`); a regression is a few lines.

    Examples:
      >>> import jax.numpy as jnp, numpy as np
      >>> def batches():
      ...     draw = np.random.default_rng(0)
      ...     while True:
      ...         x = draw.normal(size=(8, 3)).astype(np.float32)
      ...         yield {"x": x, "y": x.sum(axis=1)}
      >>> def loss(params, batch, key):
      ...     error = batch["x"] @ params["w"] - batch["y"]
      ...     return jnp.mean(error**2), {"token_count": error.size}
      >>> task = Task(lambda key: {"w": jnp.zeros(3)}, {"w": ("embed",)}, batches, loss)
    """

    init: Callable[[jax.Array], Any]  # key -> params, a pytree of arrays
    axes: Any  # logical names of each parameter's axes, structured like the parameters
    # () -> this process's part of every batch, in order: pytrees of arrays whose first axis is split over the
    # devices. Endless. One with `state()` and `restore(state)` is put where it stood when a run goes on; of
    # any other the batches already taken are drawn again. One with `follow(params)` is shown the parameters
    # before each batch is taken, and may read them until it is: rollouts are drawn from them.
    batches: Callable[[], Iterator[Any]]
    loss: LossFunction
    # (params, mean_loss) -> numbers by name. The one named "loss" ranks checkpoints, lower is better.
    evaluate: Callable[[Any, MeanLoss], dict[str, float]] | None = None
    # The same, once after the last step, where what a run reports in its end is more than what it ranks by.
    evaluate_last: Callable[[Any, MeanLoss], dict[str, float]] | None = None
    batch_shapes: Any = None  # a batch of all processes as ShapeDtypeStructs; None: as the first one is
    frozen: Any = None  # arrays that views and loss read and nobody trains
    frozen_axes: Any = None  # like `axes`
    frozen_sums: dict[str, int] | None = None  # what a checkpoint knows them by; None: their `checksums`
    save: Callable[[Path], None] | None = None  # writes what else belongs into the run's folder


class Stage(NamedTuple):
    """A stretch of a run with views of its own."""

    end: int  # the step at which it ends
    views: tuple[View, ...]


class Counted:
    """An iterator of batches whose place is the number of those taken."""

    def __init__(self, begin: Callable[[], Iterator[Any]]):
        self._begin, self._iterator, self._taken = begin, iter(begin()), 0

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._iterator)
        self._taken += 1
        return batch

    def state(self) -> dict[str, int]:
        """Return how many batches were taken."""
        return {"step": self._taken}

    def restore(self, state: dict[str, int]) -> None:
        """Draw again the batches that were taken."""
        self._iterator, self._taken = iter(self._begin()), 0
        for step in range(state["step"]):
            if next(self, None) is None:
                raise UserError(
                    f"the task's batches end after {step}, and the checkpoint has taken {state['step']}; "
                    "give the batches that the run began with"
                )


def begin_batches(task: Task):
    """Return a task's batches from their first one, with `state` and `restore`.

    Raises:
      UserError: the task has none.
    """
    if not callable(task.batches):
        raise UserError(
            f"the task's batches are {task.batches!r:.60}; give a function without arguments that returns an "
            "iterator over them"
        )
    batches = task.batches()
    if batches is None:
        raise UserError("the task's batches() returned None; it must return an iterator over batches")
    resumable = hasattr(batches, "state") and hasattr(batches, "restore")
    return batches if resumable else Counted(task.batches)


def take(batches: Iterator[Any], params: Any, step: int) -> Any:
    """Return the batch of a step, counted from 1, that is taken with these parameters.

    Raises:
      UserError: there is none.
    """
    if hasattr(batches, "follow"):
        batches.follow(params)
    try:
        return next(batches)
    except StopIteration:
        raise UserError(
            f"the task's batches ended before step {step}; let them go on without end, or lower steps"
        ) from None


def check_axes(field: str, axes: Any, arrays: Any) -> None:
    """Check that names of axes fit the arrays they are of.

    Args:
      field: of `Task`, that holds the names.
      axes: the names.
      arrays: the pytree of arrays, or ShapeDtypeStructs.

    Raises:
      UserError: names the first array whose names are missing, left over or of another number.
    """

    def by_path(tree, is_leaf=None):
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

    def is_leaf(node):  # a list of names too, to tell of it
        return is_names(node) or (isinstance(node, list) and len(node) > 0 and is_names(tuple(node)))

    named, wanted = by_path(axes, is_leaf), by_path(arrays)
    for path, array in wanted.items():
        names, rank = named.get(path), len(array.shape)
        if not (is_names(names) and len(names) == rank):
            got = brief(names) if path in named else "nothing"
            raise UserError(
                f"{field}= has {got} for '{path}', an array of shape {tuple(array.shape)}; give a tuple of "
                f"{rank} names, one an axis: any of your own, or None"
            )
    if left := [path for path, names in named.items() if path not in wanted and names != ()]:
        raise UserError(f"{field}= names axes of '{left[0]}', and there is no such array; take it out")
    try:
        jax.tree.structure(arrays).flatten_up_to(axes)
    except ValueError:
        raise UserError(
            f"{field}= is built of other containers than its arrays; give the same dicts, lists and tuples"
        ) from None


def check_loss(returned: Any) -> None:
    """Check the shapes of what a loss returns.

    Raises:
      UserError: something else than (mean, {"token_count": ...}), both scalars.
    """
    match returned:
        case (mean, {"token_count": count}) if not (jax.numpy.shape(mean) or jax.numpy.shape(count)):
            return
    shapes = str(
        jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else str(x), returned)
    )
    raise UserError(
        "loss= must return (mean, sums): a scalar, and a dict with the scalar 'token_count', what the mean "
        f"was divided by; it returned {shapes[:200]}"
    )


def check_evaluation(returned: Any) -> dict[str, float]:
    """Return what a task's `evaluate` returned, its values as Python's numbers.

    Raises:
      UserError: something else than a dict of numbers by name.
    """

    def number(value):
        value = value.item() if hasattr(value, "item") and np.size(value) == 1 else value
        return value if isinstance(value, numbers.Real) else None

    if isinstance(returned, Mapping):
        scores = {str(name): number(value) for name, value in returned.items()}
        if None not in scores.values():
            return scores
    raise UserError(
        "evaluate= must return a dict of numbers by name, such as {'loss': 0.5}; it returned "
        f"{brief(returned, 200)}"
    )
