"""Stochastic rounding of narrow parameters, as the last link of a chain."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxllm_kernels.adamw_update import fold_in, random_words
from jaxllm_kernels.adamw_update import stochastic_round as round_array
from jaxllm_kernels.compat import sharded_like, varying_axes

from jaxllm.errors import UserError
from jaxllm.optim.param_types import ParamTypes

_ROUNDED = ("bfloat16", "float16", "float8_e4m3fn", "float8_e4m3", "float8_e5m2")


class StochasticRoundState(NamedTuple):
    """State of `stochastic_round`."""

    must_be_last = "stochastic_round"  # read by check_chain

    count: jax.Array  # int32 []
    seed: jax.Array  # uint32 [2]


def stochastic_round(
    seed: int | jax.Array = 0,
    *,
    mask: Any = None,
    generator: str = "hash",
    shard_axes: tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Round parameters in 16 or 8 bits stochastically, instead of to nearest.

    The last link of a chain. With neighbours a <= w + u <= b of the parameter w plus its update u,

        Q(w + u) = b with probability (w + u - a) / (b - a), else a;    E[Q(w + u)] = w + u

    and the emitted update is the float32 difference Q(w + u) - w, on which `optax.apply_updates`
    lands exactly (unless the weight shrinks some 60,000-fold in this one step). Updates below half
    a step, which nearest rounding loses, survive on average. Inf and NaN stay.

    The mean is exact where no step of the sum is below 2**-126 = 1.2e-38, float32's smallest normal
    number, which CPUs and TPUs flush to 0: for updates of at least 1.2e-38 to bfloat16 weights that are at
    least 2**-119 = 1.5e-36 before and after (a neighbour nearer to 0 than that is closer than 1.2e-38).
    Elsewhere it is off by less than 2.4e-38. Every float16 and float8 weight, subnormals included, is in
    the range.

    A link after this one would move the landing: `check_chain` finds it. Weights in float8 need
    this package's `apply_updates`.

    The draw is a function of (seed, step, parameter's path, element) alone: a resumed run repeats
    it, replicas of a parameter round alike, and under jit so does a sharded one. Inside `shard_map`
    a shard's position is folded in, along the axes over which the parameter varies.

    Args:
      seed: an integer, or a random key.
      mask: pytree of bool structured like the parameters, or a function of them to it; False
        leaves a parameter to `apply_updates`, which rounds to nearest. None: all.
      generator: "hash" (cheap, fused into the update) or "threefry" (jax.random's bits).
      shard_axes: inside `shard_map`, the mesh axes over which parameters are spread; None: read
        from the types, which needs its check_vma=True.

    Raises:
      UserError: at the first update, if it was rounded to 16 bits before, or if a parameter is of a
        type of 8 bits other than float8_e4m3fn, float8_e4m3 and float8_e5m2.

    Examples:
      >>> params = jnp.full(10_000, 256.0, jnp.bfloat16)  # neighbours are 1 and 2 away
      >>> optimizer = optax.chain(optax.sgd(0.01), stochastic_round(seed=0))
      >>> state = optimizer.init(params)
      >>> for _ in range(20):
      ...     updates, state = optimizer.update(jnp.ones(10_000), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params.dtype, round(float(jnp.mean(params.astype(float))), 1))
      bfloat16 255.8

    References:
      Ozkara, Yu, Park, Stochastic Rounding for LLM Training (arXiv 2502.20566).
    """

    types = ParamTypes("stochastic_round")

    def init(params):
        types.note(params)
        return StochasticRoundState(jnp.zeros((), jnp.int32), seed_words(seed))

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError("stochastic_round needs params: call update(updates, state, params)")
        types.check(params)
        step_seed = fold_in(state.seed, state.count)

        def delta(path, param, chosen, u):
            if not (chosen and _is_narrow(param.dtype)):
                return u
            _check(path, param, u)
            words = random_words(leaf_seed(step_seed, path, param, shard_axes), param.shape, generator)
            words = sharded_like(words, param)
            wanted = param.astype(jnp.float32) + u
            return difference(round_array(wanted, words, param.dtype), param)

        deltas = jax.tree_util.tree_map_with_path(delta, params, chosen(mask, params), updates)
        return deltas, StochasticRoundState(optax.safe_increment(state.count), state.seed)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_updates(params, updates):
    """Add updates to parameters, as `optax.apply_updates` does, to those in float8 too.

    jax adds no float32 to a float8 of its own accord, so these are widened first. The result has
    the parameters' types.

    Args:
      params: pytree of float arrays.
      updates: pytree structured like it, as a transformation emits them.

    Examples:
      >>> params = jnp.ones(10_000, jnp.float8_e4m3fn)  # neighbours are 1/16 and 1/8 away
      >>> optimizer = optax.chain(optax.sgd(0.01), stochastic_round())
      >>> updates, state = optimizer.update(-jnp.ones(10_000), optimizer.init(params), params)
      >>> print(round(float(jnp.mean(apply_updates(params, updates).astype(float))), 2))
      1.01
    """

    def widened(param):
        return param.astype(jnp.float32) if param.dtype.itemsize == 1 else param

    added = optax.apply_updates(jax.tree.map(widened, params), updates)
    return jax.tree.map(lambda new, param: new.astype(param.dtype), added, params)


def seed_words(seed: int | jax.Array) -> jax.Array:
    """Return an integer, traced or not, or a random key of either kind as uint32 [2]."""
    if jnp.issubdtype(jnp.result_type(seed), jnp.integer) and jnp.ndim(seed) == 0:
        seed = jax.random.key(seed, impl="threefry2x32")
    if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        seed = jax.random.key_data(seed)
    return seed.reshape(-1)[:2].astype(jnp.uint32)


def leaf_seed(step_seed: jax.Array, path, param: jax.Array, shard_axes=None) -> jax.Array:
    """Return the seed of one parameter's draw, and of its shard inside `shard_map`."""
    name = jax.tree_util.keystr(path)
    seed = fold_in(step_seed, jnp.uint32(zlib.crc32(name.encode())))
    for axis in sorted(varying_axes(param)) if shard_axes is None else shard_axes:
        seed = fold_in(seed, jax.lax.axis_index(axis))
    return seed


def chosen(mask, params):
    """Return the mask as a pytree of bool, structured like the parameters."""
    mask = mask(params) if callable(mask) else mask
    return jax.tree.map(lambda _: True, params) if mask is None else mask


def difference(new: jax.Array, old: jax.Array) -> jax.Array:
    """Return new - old in float32: what `optax.apply_updates` must add to land on `new`."""
    new, old = new.astype(jnp.float32), old.astype(jnp.float32)
    return jnp.where(new == old, 0, new - old)  # inf - inf would be NaN


def _is_narrow(dtype):
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def _check(path, param, update):
    name = jax.tree_util.keystr(path) or "the parameter"
    if param.dtype.name not in _ROUNDED:
        raise UserError(
            f"stochastic_round cannot round {name} to {param.dtype}; keep it in one of "
            f"{', '.join(_ROUNDED)}, or leave it out with the mask"
        )
    if update.dtype != jnp.float32:
        raise UserError(
            f"the update of {name} reaches stochastic_round as {update.dtype}, so it was rounded to "
            "nearest before; keep the chain in float32, for instance with "
            "scale_by_adam_low_precision, or cast gradients to float32 first"
        )
