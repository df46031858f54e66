"""Which keys each query may see."""

import jax
import jax.numpy as jnp

# The score of a hidden key: exp of it minus any visible score is 0, and unlike -inf it leaves no
# NaN where nothing is visible.
NOTHING = -1e30


def visible(
    T: int,
    S: int,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids_BT: jax.Array | None = None,
    mask_BTS: jax.Array | None = None,
) -> jax.Array | None:
    """Return a bool mask [1 or B, 1, T, S], or None where every query sees every key.

    Args:
      T: number of queries, whose positions are 0..T-1.
      S: number of keys, whose positions are 0..S-1.
      causal: hide keys after the query.
      window: hide keys `window` or more positions before the query; None or 0: no limit.
      segment_ids_BT: hide keys of another document (needs T == S).
      mask_BTS: any further restriction, True where allowed; axes may have size 1.

    Examples:
      >>> visible(3, 3, window=2)[0, 0].astype(int).tolist()
      [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    parts = []
    distance_TS = jnp.arange(T, dtype=jnp.int32)[:, None] - jnp.arange(S, dtype=jnp.int32)[None, :]
    if causal:
        parts.append((distance_TS >= 0)[None, None])
    if window:
        parts.append((distance_TS < window)[None, None])
    if segment_ids_BT is not None:
        parts.append((segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None])
    if mask_BTS is not None:
        parts.append(mask_BTS[:, None])
    if not parts:
        return None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    return allowed
