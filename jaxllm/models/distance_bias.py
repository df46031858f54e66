"""T5's attention bias: a number a head for each bucket of distances (arXiv 1910.10683, section 2.1)."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def distance_bias(
    config: Any, table_NH: jax.Array, place_T: jax.Array, S: int, *, bidirectional: bool
) -> jax.Array:
    """Return what is added to each score, float32 [H, T, S].

    Args:
      config: has distance_buckets and longest_distance.
      table_NH: a number a head for each bucket.
      place_T: of the queries among the S keys.
      bidirectional: half of the buckets are of keys behind the query; else keys behind share bucket 0.
    """
    distance_TS = jnp.arange(S, dtype=jnp.int32)[None] - place_T[:, None]
    buckets, first_TS = config.distance_buckets, jnp.zeros((), jnp.int32)
    if bidirectional:
        buckets //= 2
        first_TS, distance_TS = jnp.where(distance_TS > 0, buckets, 0), jnp.abs(distance_TS)
    else:
        distance_TS = jnp.maximum(-distance_TS, 0)
    exact = buckets // 2
    log_TS = jnp.log(jnp.maximum(distance_TS, 1).astype(jnp.float32) / exact)
    log_TS = log_TS / math.log(config.longest_distance / exact)
    far_TS = exact + (log_TS * (buckets - exact)).astype(jnp.int32)
    near_TS = jnp.where(distance_TS < exact, distance_TS, jnp.minimum(far_TS, buckets - 1))
    return jnp.moveaxis(table_NH.astype(jnp.float32)[first_TS + near_TS], -1, 0)
