"""One AdamW step of one array, in one pass over memory, with stochastic rounding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm_kernels.adamw_update import arithmetic, xla
from jaxllm_kernels.adamw_update.random_bits import GENERATORS, random_words
from jaxllm_kernels.compat import sharded_like

_FLOATS = (jnp.bfloat16, jnp.float32)


class AdamWArrays(NamedTuple):
    """What a step returns: shapes and dtypes of what it was given."""

    weights: jax.Array
    first_moment: jax.Array
    second_moment: jax.Array


def adamw_update(
    weights: jax.Array,
    first_moment: jax.Array,
    second_moment: jax.Array,
    gradient: jax.Array,
    *,
    learning_rate: float | jax.Array,
    step: int | jax.Array,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.95,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    round_weights: bool = False,
    round_moments: bool = False,
    random_bits: jax.Array | None = None,
    seed: jax.Array | None = None,
    generator: str = "hash",
) -> AdamWArrays:
    """Return weights and moments after one AdamW step, each stored in the dtype it came in.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g**2
        w = Q(w - lr (m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + eps) + weight_decay w))

    All arithmetic is float32, so that b2 = 0.999 does not become bfloat16's 1.0; Q rounds to
    nearest or stochastically. A bfloat16 second moment that rounds to nearest with b2 > 0.99 grows
    without bound of its own, since the decay is below half a step: use `round_moments` there.
    Donate the arrays: each of w, m, v, g is read once and w, m, v are written once.

    Args:
      weights: any shape; bfloat16 or float32.
      first_moment: shape of weights; bfloat16 or float32.
      second_moment: shape of weights; bfloat16 or float32.
      gradient: shape of weights; any float.
      learning_rate: of this step.
      step: number of this step, from 1.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root.
      weight_decay: decoupled, times the learning rate; 0 where the array does not decay.
      round_weights: round bfloat16 weights stochastically.
      round_moments: round bfloat16 moments stochastically.
      random_bits: what rounds: uint16 (weights only) or uint32 of weights' shape, uniform. One
        uint32 serves weights and moments.
      seed: or a uint32 [2] from which `generator` computes the bits inside the loop, as a function
        of it and of each element's index; fold in the step and the parameter (`fold_in`), and under
        shard_map with sharded weights the shard, but never the replica.
      generator: "hash", or "threefry" (jax.random's, bit for bit).

    Raises:
      ValueError: shapes or dtypes that do not fit, a step below 1, no source of random bits.

    Examples:
      >>> w, zero = jnp.full(3, 256.0, jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
      >>> new = adamw_update(w, zero, zero, jnp.ones(3), learning_rate=2.0, step=1)
      >>> print(new.weights, new.second_moment)
      [254 254 254] [0.0500488 0.0500488 0.0500488]
    """
    arrays = (weights, first_moment, second_moment, gradient)
    rounds = {"round_weights": round_weights, "round_moments": round_moments}
    _check(arrays, random_bits, seed, generator, rounds)
    if isinstance(step, int) and step < 1:  # the bias correction divides by 1 - b1**step
        raise ValueError(f"step is {step}; it must be at least 1, the number of the first step")
    scalars = arithmetic.scalars(learning_rate, b1, b2, eps, weight_decay, step)
    words = random_bits
    if words is None and any(rounds.values()):
        words = sharded_like(random_words(seed, weights.shape, generator), weights)
    return AdamWArrays(*xla.adamw_update(*arrays, scalars, words, **rounds))


def _check(arrays, bits, seed, generator, rounds):
    weights = arrays[0]
    for name, array in zip(("first_moment", "second_moment", "gradient"), arrays[1:], strict=True):
        if array.shape != weights.shape:
            raise ValueError(f"{name} has shape {array.shape}, weights {weights.shape}; they must agree")
    for name, array in zip(("weights", "first_moment", "second_moment"), arrays, strict=False):
        if array.dtype not in _FLOATS:
            raise ValueError(f"{name} is {array.dtype}; it must be bfloat16 or float32")
    if generator not in GENERATORS:
        raise ValueError(f"generator '{generator}' is not one of {GENERATORS}")
    if not any(rounds.values()):
        return
    if (bits is None) == (seed is None):
        raise ValueError("stochastic rounding needs random_bits or a seed, and only one of them")
    if seed is not None and (seed.shape != (2,) or seed.dtype != jnp.uint32):
        raise ValueError(f"seed is {seed.dtype} {seed.shape}; it must be uint32 (2,), as of fold_in")
    if bits is not None and bits.shape != weights.shape:
        raise ValueError(f"random_bits have shape {bits.shape}, weights {weights.shape}; they must agree")
    enough = (jnp.uint32,) if rounds["round_moments"] else (jnp.uint16, jnp.uint32)
    if bits is not None and bits.dtype not in enough:
        raise ValueError(
            f"random_bits are {bits.dtype}; give uint32, or uint16 where only the weights are rounded"
        )
