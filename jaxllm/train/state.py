"""The state of a run: everything that a step reads and writes, and where its arrays live."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import parallel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree; donated to every step."""

    step: jax.Array  # int32: updates applied so far
    params: Any
    opt_state: Any
    key: jax.Array  # uint32 key data; step t draws from fold_in(key, t)
    failed: jax.Array  # bool: a loss or gradient was not finite; no update is applied any more


def init_state(init_params, optimizer: optax.GradientTransformation, key) -> TrainState:
    """Return the state before the first step.

    Args:
      init_params: key -> params.
      optimizer: the chain that the run updates with.
      key: a typed random key.
    """
    key_params, key_run = jax.random.split(key)
    params = init_params(key_params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(key_run),
        failed=jnp.zeros((), bool),
    )


def state_shardings(state_shapes: TrainState, optimizer, axes, mesh) -> TrainState:
    """Return a NamedSharding for each array of a state.

    Whatever the optimizer keeps in the shape of a parameter is sharded like that parameter;
    everything else is replicated.

    Args:
      state_shapes: `jax.eval_shape` of `init_state`.
      optimizer: the chain the state was made with.
      axes: pytree of logical axis names, structured like the parameters.
      mesh: the mesh of the run.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    params = parallel.shardings(axes, state_shapes.params, mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, param, sharding: sharding if leaf.shape == param.shape else replicated,
        state_shapes.opt_state,
        state_shapes.params,
        params,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(
        step=replicated, params=params, opt_state=opt_state, key=replicated, failed=replicated
    )
