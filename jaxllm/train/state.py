"""The state of a run: everything that a step reads and writes, and where its arrays live."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import parallel
from jaxllm.axis_names import is_names, with_inputs
from jaxllm.short_repr import holding

_WORTH_MOVING = 2**20  # bytes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree; donated to every step."""

    step: jax.Array  # int32: updates applied so far
    params: Any
    opt_state: Any
    key: jax.Array  # uint32 key data; step t draws from fold_in(key, t)
    failed: jax.Array  # bool: a loss or gradient was not finite; no update is applied any more
    frozen: Any = None  # what views and loss read and nobody trains; not in checkpoints

    def __repr__(self) -> str:
        return f"{type(self).__name__}(parameters: {holding(self.params)}; all: {holding(self)})"


def init_state(init_params, optimizer: optax.GradientTransformation, key, frozen=None) -> TrainState:
    """Return the state before the first step.

    Args:
      init_params: key -> params.
      optimizer: the chain that the run updates with.
      key: a typed random key.
      frozen: arrays that views and loss read and nobody trains.
    """
    key_params, key_run = jax.random.split(key)
    params = init_params(key_params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(key_run),
        failed=jnp.zeros((), bool),
        frozen=frozen,
    )


def state_shardings(
    state_shapes: TrainState, optimizer, axes, mesh, *, offload: str = "none", frozen_axes=None
) -> TrainState:
    """Return a NamedSharding for each array of a state.

    Whatever the optimizer keeps in the shape of a parameter is sharded like that parameter;
    everything else is replicated.

    Args:
      state_shapes: `jax.eval_shape` of `init_state`.
      optimizer: the chain the state was made with.
      axes: pytree of logical axis names, structured like the parameters.
      mesh: the mesh of the run.
      offload: as of `RunConfig`. Of the parameters' shapes those move that are stacks of layers' matrices,
        of a mebibyte or more.
      frozen_axes: names of the axes of `state_shapes.frozen`.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    params = parallel.shardings(axes, state_shapes.params, mesh)
    moves = jax.tree.map(_is_moved, axes, state_shapes.params, is_leaf=is_names)

    def place(leaf, param, sharding, moves):
        if _is_masked(leaf):  # of another's parameters, as in optax.multi_transform
            return leaf
        if leaf.shape != param.shape:
            return replicated
        return parallel.in_host_memory(sharding) if moves and offload != "none" else sharding

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        place,
        state_shapes.opt_state,
        state_shapes.params,
        params,
        moves,
        transform_non_params=lambda _: replicated,
        is_leaf=_is_masked,
    )
    if offload == "state":
        params = jax.tree.map(lambda s, moves: parallel.in_host_memory(s) if moves else s, params, moves)
    frozen = state_shapes.frozen
    if frozen is not None:
        frozen = parallel.shardings(frozen_axes, frozen, mesh)
    return TrainState(replicated, params, opt_state, replicated, replicated, frozen)


def keys_as_data(tree: Any) -> Any:
    """Return a pytree of arrays, or ShapeDtypeStructs, whose typed random keys are their uint32 data."""

    def data(x):
        if not _is_key(x):
            return x
        if not isinstance(x, jax.ShapeDtypeStruct):
            return jax.random.key_data(x)
        shape = jax.eval_shape(jax.random.key_data, x)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=x.sharding)

    return jax.tree.map(data, tree)


def data_as_keys(tree: Any, like: Any) -> Any:
    """Return a pytree that `keys_as_data` made with typed random keys again, where `like` has them."""

    def key(like, x):
        if not _is_key(like):
            return x
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), like.dtype)))

    return jax.tree.map(key, like, tree)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_masked(node) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_moved(names: tuple[str | None, ...], param) -> bool:
    # Fetched layer by layer; rows of [layers, width] are too short for that, and a TPU cannot cut them out.
    large = param.size * param.dtype.itemsize >= _WORTH_MOVING
    return large and names[:1] == ("layers",) and bool(with_inputs(names).inputs)
