"""Engines: factories of the step that a run takes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxllm.errors import UserError
from jaxllm.train.state import TrainState
from jaxllm.train.step import make_train_step
from jaxllm.train.task import LossFunction, View


class Parts(NamedTuple):
    """What a step is made of."""

    loss: LossFunction
    optimizer: optax.GradientTransformation
    views: Sequence[View]
    shapes: TrainState  # ShapeDtypeStructs with shardings
    batch_shapes: Any  # of all processes, as the loss takes them
    mesh: jax.sharding.Mesh


Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]  # see `make_train_step`
Engine = Callable[[Parts], Step]


def jit_engine(accumulate: int = 1) -> Engine:
    """Return the engine whose step is one compiled program, on any mesh.

    Args:
      accumulate: parts a batch is computed in, one by one.
    """

    def engine(parts: Parts) -> Step:
        _check_batch(parts, accumulate)
        step = make_train_step(parts.loss, parts.optimizer, accumulate=accumulate, views=parts.views)
        places = jax.tree.map(lambda x: x.sharding, parts.shapes)
        if parts.shapes.frozen is not None:
            return _StepOnFrozen(on_mesh(parts.mesh, step), places)
        return jax.jit(on_mesh(parts.mesh, step), donate_argnums=0, out_shardings=(places, None))

    return engine


class _StepOnFrozen:
    """A jitted step that reads what is frozen, and neither donates nor returns it.

    Frozen arrays are their owner's, who starts other runs or evaluations from them.
    """

    def __init__(self, step, places: TrainState):
        def apart(state, frozen, batch):
            state, metrics = step(dataclasses.replace(state, frozen=frozen), batch)
            return dataclasses.replace(state, frozen=None), metrics

        places = dataclasses.replace(places, frozen=None)
        self._jitted = jax.jit(apart, donate_argnums=0, out_shardings=(places, None))

    def __call__(self, state: TrainState, batch):
        new, metrics = self._jitted(dataclasses.replace(state, frozen=None), state.frozen, batch)
        return dataclasses.replace(new, frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch):
        return self._jitted.lower(dataclasses.replace(state, frozen=None), state.frozen, batch)


def on_mesh(mesh, function):
    """Return a function that is traced on a mesh, which `parallel.constrain` then finds.

    Set here and not around the loop: other code, orbax for one, would also run on it.
    """

    @functools.wraps(function)
    def on_it(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return on_it


def _check_batch(parts: Parts, accumulate: int) -> None:
    ways = parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]
    for path, x in jax.tree_util.tree_leaves_with_path(parts.batch_shapes):
        if x.shape[0] % (ways * accumulate):
            raise UserError(
                f"the batch's {jax.tree_util.keystr(path)} has shape {x.shape}, whose first axis cannot be "
                f"split over {ways} devices x accumulate={accumulate}; choose a multiple of "
                f"{ways * accumulate}"
            )
