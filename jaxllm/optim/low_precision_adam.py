"""Adam with float32 arithmetic and bfloat16 moments, and AdamW at 8 bytes a parameter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxllm_kernels.adamw_update import adamw_update, fold_in

from jaxllm.optim.after import after
from jaxllm.optim.param_types import ParamTypes
from jaxllm.optim.stochastic_round import chosen, difference, leaf_seed, seed_words


class LowPrecisionAdamState(NamedTuple):
    """State of `scale_by_adam_low_precision`."""

    count: jax.Array  # int32 []
    seed: jax.Array  # uint32 [2]
    mu: Any  # moment_dtype, shapes of the parameters
    nu: Any  # moment_dtype, shapes of the parameters


class AdamWBF16SRState(LowPrecisionAdamState):
    """State of `adamw_bf16_sr`: the same, of a link whose updates land exactly."""

    must_be_last = "adamw_bf16_sr"  # read by check_chain


def scale_by_adam_low_precision(
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    moment_dtype: Any = jnp.bfloat16,
    round_moments: bool = True,
    seed: int | jax.Array = 0,
    generator: str = "hash",
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by Adam, computed in float32 whatever the moments are stored in.

        m = Q(b1 m + (1 - b1) g)      v = Q(b2 v + (1 - b2) g**2)
        u = m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + eps)        before m and v are rounded by Q

    `optax.scale_by_adam` on bfloat16 parameters multiplies by b2 in bfloat16, where 0.999 is 1, and
    a second moment rounded to nearest grows of its own where b2 > 0.99. Emits float32 updates.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root.
      moment_dtype: bfloat16 or float32.
      round_moments: round bfloat16 moments stochastically; False: to nearest.
      seed: of the rounding: an integer, or a random key.
      generator: "hash" or "threefry", as of `stochastic_round`.

    Examples:
      >>> params = jnp.array([3.0, -2.0], jnp.bfloat16)
      >>> optimizer = optax.chain(scale_by_adam_low_precision(), optax.scale(-0.5))
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     updates, state = optimizer.update(2 * params, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{jnp.sum(params.astype(float) ** 2):.1f}", end=" ")
      8.5 5.0 2.6 1.1
    """

    # A step of the fused update from weight 0 at rate -1 is Adam's scaled update itself.
    def direction(param, g, mu, nu, *, decays, count, **kwargs):
        del decays, count
        zero = jnp.zeros_like(param, dtype=jnp.float32)
        new = adamw_update(zero, mu, nu, g, learning_rate=-1.0, round_moments=round_moments, **kwargs)
        return new.weights, new.first_moment, new.second_moment

    hyper = dict(b1=b1, b2=b2, eps=eps, generator=generator)
    name = "scale_by_adam_low_precision"
    return _per_leaf(name, direction, LowPrecisionAdamState, moment_dtype, seed, hyper)


def adamw_bf16_sr(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    *,
    round_moments: bool = True,
    seed: int | jax.Array = 0,
    generator: str = "hash",
) -> optax.GradientTransformationExtraArgs:
    """AdamW for bfloat16 parameters without float32 copies: 8 bytes a parameter, gradient included.

    Weights, gradients and both moments are bfloat16, arithmetic is float32, and the new weights
    are rounded stochastically (see `stochastic_round`, whose draw it makes): one fused loop that
    reads and writes 14 bytes a parameter on TPU and GPU. Parameters in float32 stay float32. Give
    `optax.inject_hyperparams` its hyperparam_dtype=jnp.float32: in bfloat16 a b2 of 0.999 is 1.

    Args:
      learning_rate: a value or a schedule; two to four times that of mixed precision (the paper).
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root.
      weight_decay: decoupled, times the learning rate; inside the one rounding.
      mask: pytree of bool, or a function of the parameters to it: which ones decay. None: all.
      round_moments: round the moments stochastically too; False: to nearest.
      seed: of the rounding: an integer, or a random key.
      generator: "hash" or "threefry".

    Examples:
      >>> params = jnp.array([3.0, -2.0], jnp.bfloat16)
      >>> optimizer = adamw_bf16_sr(0.5)
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     updates, state = optimizer.update(2 * params, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{jnp.sum(params.astype(float) ** 2):.1f}", end=" ")
      8.5 5.0 2.6 1.1

    References:
      Ozkara, Yu, Park, Stochastic Rounding for LLM Training (arXiv 2502.20566).
    """

    def step(param, g, mu, nu, *, decays, count, **kwargs):
        rate = learning_rate(count) if callable(learning_rate) else learning_rate

        def update(g):
            return adamw_update(
                param, mu, nu, g, learning_rate=rate, weight_decay=weight_decay if decays else 0.0,
                round_weights=True, round_moments=round_moments, **kwargs,
            )  # fmt: skip

        delta = difference(update(g).weights, param)
        # The weights' loop reads both moments: on a CPU it runs before the loops that overwrite them.
        # Elsewhere the compiler merges the two calls into one.
        new = update(after(g, optax.apply_updates(param, delta), count))
        return delta, new.first_moment, new.second_moment

    hyper = dict(b1=b1, b2=b2, eps=eps, generator=generator)
    return _per_leaf("adamw_bf16_sr", step, AdamWBF16SRState, jnp.bfloat16, seed, hyper, mask)


def _per_leaf(name, step, state_type, moment_dtype, seed, hyper, mask=None):
    """Return the transformation that takes a step of Adam in every parameter.

    Args:
      step: (param, gradient, mu, nu, decays, count, **kwargs of adamw_update) -> (update, mu, nu).
    """

    types = ParamTypes(name)

    def init(params):
        types.note(params)

        def zeros():
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=moment_dtype), params)

        return state_type(jnp.zeros((), jnp.int32), seed_words(seed), zeros(), zeros())

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(f"{name} needs params: call update(updates, state, params)")
        types.check(params)
        count = optax.safe_increment(state.count)
        # The count before this step, so that the draw is that of stochastic_round.
        step_seed = fold_in(state.seed, state.count)

        def leaf(path, param, g, mu, nu, decays):
            kwargs = dict(step=count, seed=leaf_seed(step_seed, path, param), **hyper)
            return step(param, g, mu, nu, decays=decays, count=state.count, **kwargs)

        new = jax.tree_util.tree_map_with_path(
            leaf, params, updates, state.mu, state.nu, chosen(mask, params)
        )
        deltas, mu, nu = (jax.tree.map(lambda _, triple, i=i: triple[i], params, new) for i in range(3))
        return deltas, state_type(count, state.seed, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)
