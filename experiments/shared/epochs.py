"""Train a model on a set of instances, epoch after epoch, and keep how well it does on the way."""

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from jaxllm.errors import UserError
from jaxllm.train import Every, NonFiniteLoss, Run, RunConfig, Task, prepare, train_run

Arrays = dict[str, np.ndarray]  # by name, an instance a row


def epochs(part: Arrays, batch_size: int, seed: int) -> Iterator[Arrays]:
    """Yield whole batches without end, in a new order each epoch.

    Raises:
      UserError: fewer rows than a batch has.

    Examples:
      >>> batches = epochs({"x": np.arange(4)}, 2, seed=0)
      >>> sorted(np.concatenate([next(batches)["x"] for _ in range(2)]).tolist())
      [0, 1, 2, 3]
    """
    rows = len(next(iter(part.values())))
    if rows < batch_size:
        raise UserError(f"there are {rows} rows, too few for a batch of {batch_size}; make batches smaller")
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        for at in range(0, rows - batch_size + 1, batch_size):
            chosen = order[at : at + batch_size]
            yield {name: x[chosen] for name, x in part.items()}


def alternate_halves(part: Arrays, batch_size: int, seed: int) -> Iterator[Arrays]:
    """Yield a batch of the first half, then one of the second: for a search that holds the second out."""
    rows = len(next(iter(part.values()))) // 2
    halves = ({name: x[at : at + rows] for name, x in part.items()} for at in (0, rows))
    both = [epochs(half, batch_size, seed) for half in halves]
    for turn in itertools.count():
        yield next(both[turn % 2])


def cut(part: Arrays, rows: int) -> Iterator[Arrays]:
    """Yield a part in order, by so many rows at most; fewer divide it evenly, so that one program serves."""
    total = len(next(iter(part.values())))
    rows = math.gcd(rows, total) if total > rows else total
    for at in range(0, total, rows):
        yield {name: x[at : at + rows] for name, x in part.items()}


def prepare_epochs(
    task: Task, *, steps: int, measure_every: int, optimizer: optax.GradientTransformation, views: tuple = ()
) -> Run:
    """Return a run whose programs serve every seed, start and set of instances; see `train_epochs`.

    Args:
      task: has `batch_shapes`; its batches are those of each call.
    """
    config = RunConfig(
        steps=steps, save_every=steps, keep_last=1, keep_best=0, log_every=measure_every, progress=False
    )
    return prepare(task, config, optimizer=optimizer, views=views)


def train_epochs(
    run: Run,
    start: Any,
    batches: Callable[[], Iterator[Arrays]],
    measure: Callable[[Any], dict[str, Any]],
    seed: int,
) -> tuple[Any, list[dict[str, Any]]]:
    """Return (the parameters after the last step, what `measure(params)` said every so often).

    The run's own files are dropped: a study keeps what this returns. One that diverges ends there, and its
    parameters are None.
    """
    curve: list[dict[str, Any]] = []

    def note(step, params):  # from the host, as what is returned: one program reads both
        curve.append({"step": step} | measure(jax.device_get(params)))

    with tempfile.TemporaryDirectory(prefix="jaxllm-epochs-") as out:
        run = dataclasses.replace(
            run, task=dataclasses.replace(run.task, batches=batches), start=start,
            config=dataclasses.replace(run.config, out=out, seed=seed),
        )  # fmt: skip
        try:
            trained = train_run(run, callbacks=[Every(run.config.log_every, note)])
        except NonFiniteLoss:
            return None, curve
        return jax.device_get(trained.params), curve


def steps_to(curve: list[dict[str, Any]], least: float) -> float:
    """Return after how many steps the accuracy was first so high; infinite: never.

    Examples:
      >>> curve = [{"step": 10, "accuracy": 0.3}, {"step": 20, "accuracy": 0.95}]
      >>> steps_to(curve, 0.9), steps_to(curve[:1], 0.9)
      (20, inf)
    """
    return min((one["step"] for one in curve if one["accuracy"] >= least), default=math.inf)


def share_right(predict: Callable[[Any, Arrays], jax.Array], params: Any, part: Arrays, rows: int) -> float:
    """Return the share of counted targets, those that are not negative, that a model predicts."""
    right = counted = 0
    for some in cut(part, rows):
        said, target = np.asarray(predict(params, some)), some["targets"]
        right += int(np.sum((said == target) & (target >= 0)))
        counted += int(np.sum(target >= 0))
    return right / counted
