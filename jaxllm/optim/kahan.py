"""Kahan-compensated parameters: the rounding error of each step is carried into the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.optim.param_types import ParamTypes
from jaxllm.optim.stochastic_round import chosen, difference


class KahanState(NamedTuple):
    """State of `kahan_compensate`."""

    must_be_last = "kahan_compensate"  # read by check_chain

    error: Any  # dtypes and shapes of the parameters; a scalar where one is not compensated


def kahan_compensate(mask: Any = None) -> optax.GradientTransformationExtraArgs:
    """Carry what rounding a narrow parameter to nearest loses into its next update.

    The last link of a chain, the deterministic rival of `stochastic_round`, at 2 more bytes for each
    bfloat16 parameter. With the parameter w, its update u and the carried error c:

        w' = nearest(w + (u + c))        c' = (u + c) - (w' - w)

    Args:
      mask: pytree of bool structured like the parameters, or a function of them to it; False
        leaves a parameter to `optax.apply_updates`. None: all of 16 bits; other types never are.

    Examples:
      >>> params = jnp.full(3, 256.0, jnp.bfloat16)  # neighbours are 1 and 2 away
      >>> optimizer = optax.chain(optax.sgd(0.01), kahan_compensate())
      >>> state = optimizer.init(params)
      >>> for _ in range(150):
      ...     updates, state = optimizer.update(jnp.ones(3), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params, state[1].error)
      [255 255 255] [-0.470703 -0.470703 -0.470703]

    References:
      Zamirai et al., Revisiting BFloat16 Training (arXiv 2010.06192).
    """

    types = ParamTypes("kahan_compensate")

    def compensated(params):
        def is_narrow(param, wanted):
            return bool(wanted) and jnp.finfo(param.dtype).bits == 16

        return jax.tree.map(is_narrow, params, chosen(mask, params))

    def init(params):
        types.note(params)
        zeros = jax.tree.map(
            lambda p, narrow: jnp.zeros_like(p) if narrow else jnp.zeros((), p.dtype),
            params,
            compensated(params),
        )
        return KahanState(zeros)

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError("kahan_compensate needs params: call update(updates, state, params)")
        types.check(params)

        def leaf(param, u, error, narrow):
            if not narrow:
                return u, error
            wanted = u.astype(jnp.float32) + error.astype(jnp.float32)
            # reduce_precision is a rounding that no compiler drops.
            info = jnp.finfo(param.dtype)
            new = jax.lax.reduce_precision(param.astype(jnp.float32) + wanted, info.nexp, info.nmant)
            delta = difference(new, param)
            return delta, (wanted - delta).astype(param.dtype)

        pairs = jax.tree.map(leaf, params, updates, state.error, compensated(params))
        deltas, error = (jax.tree.map(lambda _, pair, i=i: pair[i], params, pairs) for i in range(2))
        return deltas, KahanState(error)

    return optax.GradientTransformationExtraArgs(init, update)
