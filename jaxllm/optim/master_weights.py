"""Float32 master weights for parameters kept in a narrower type."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.optim.param_types import ParamTypes


class MasterWeightsState(NamedTuple):
    """State of `with_master_weights`."""

    must_be_last = "with_master_weights"  # read by check_chain

    master: Any  # float32, shapes of the parameters
    inner: Any  # state of the wrapped transformation


def with_master_weights(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` on a float32 copy of the parameters and round the result to their own dtype.

    This is "O2" mixed precision (Micikevicius et al., arXiv 1710.03740, section 3.1): 4 more bytes a
    parameter, so that updates below half a bfloat16 step are not lost. The emitted updates are
    float32 differences that land `optax.apply_updates` on the rounded master weights.

    Args:
      inner: any transformation; it sees float32 gradients and float32 parameters.

    Examples:
      >>> params = {"w": jnp.full(3, 256.0, jnp.bfloat16)}
      >>> optimizer = with_master_weights(optax.sgd(0.1))
      >>> state = optimizer.init(params)
      >>> for _ in range(20):  # bfloat16 alone would stay at 256: its steps there are 1 and 2 apart
      ...     updates, state = optimizer.update({"w": jnp.ones(3, jnp.bfloat16)}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params["w"][0], round(float(state.master["w"][0]), 3))
      254 254.0
    """
    types = ParamTypes("with_master_weights")
    inner = optax.with_extra_args_support(inner)

    def float32(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params):
        types.note(params)
        # A copy even of float32: a step that donates its state may not be given a buffer twice.
        master = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
        return MasterWeightsState(master, inner.init(master))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("with_master_weights needs params: call update(updates, state, params)")
        types.check(params)
        updates, inner_state = inner.update(float32(updates), state.inner, state.master, **extra)
        master = optax.apply_updates(state.master, updates)
        deltas = jax.tree.map(
            lambda m, p: m.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32),
            master,
            params,
        )
        return deltas, MasterWeightsState(master, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
