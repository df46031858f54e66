"""Which blocks of scores a kernel visits, and which of them hide something.

Everything is a count of positions or blocks; `index` may be traced. A range of blocks is cut into
three: those that may hide something, those that hide nothing, and again those that may.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Visits(NamedTuple):
    """Blocks first..stop-1 are visited; of these whole_first..whole_stop-1 hide nothing."""

    first: int
    whole_first: int
    whole_stop: int
    stop: int


def key_blocks(index, queries: int, keys: int, S: int, causal: bool, window: int | None) -> Visits:
    """Return the key blocks that query block `index` visits.

    Args:
      queries, keys: positions in a block of either.
      S: number of keys.
    """
    start = index * queries
    first = divide(jnp.maximum(start - window + 1, 0), keys) if window else 0
    stop = -(-S // keys)
    whole_first, whole_stop = first, S // keys
    if causal:
        stop = jnp.minimum(stop, divide(start + queries + keys - 1, keys))
        whole_stop = jnp.minimum(whole_stop, divide(start + 1, keys))
    if window:
        whole_first = divide(jnp.maximum(start + queries - window, 0) + keys - 1, keys)
    return Visits(first, whole_first, whole_stop, stop)


def query_blocks(index, queries: int, keys: int, T: int, causal: bool, window: int | None) -> Visits:
    """Return the query blocks that key block `index` is visited by; arguments as in `key_blocks`."""
    start = index * keys
    stop = whole_stop = -(-T // queries)
    first = whole_first = 0
    if causal:
        first = divide(start, queries)
        whole_first = divide(start + keys - 1 + queries - 1, queries)
    if window:
        stop = jnp.minimum(stop, divide(start + keys - 2 + window, queries) + 1)
        whole_stop = jnp.minimum(whole_stop, divide(start + window, queries))
    return Visits(first, whole_first, whole_stop, stop)


def divide(count, by: int):
    """Return count // by of a count that is not negative, which spares what // does for signs."""
    return count // by if isinstance(count, int) else lax.div(count, count.dtype.type(by))


def visit(
    visits: Visits,
    body,
    carry,
    *,
    all_masked: bool,
    masked_first: bool,
    masked_last: bool,
    within=None,
):
    """Call `carry = body(block, carry, masked)` for each block of a range, and return the last carry.

    Args:
      all_masked: every block may hide something (segment ids).
      masked_first, masked_last: whether the ends of the range may hold blocks that hide something;
        without, no code is made for them.
      within: (first, stop) to which the visits are limited.
    """
    first, whole_first, whole_stop, stop = visits
    if within is not None:
        first, stop = jnp.maximum(first, within[0]), jnp.minimum(stop, within[1])
    if all_masked:
        return lax.fori_loop(first, stop, lambda n, c: body(n, c, True), carry)
    whole_first = jnp.clip(whole_first, first, jnp.maximum(stop, first)) if masked_first else first
    whole_stop = jnp.clip(whole_stop, whole_first, jnp.maximum(stop, whole_first)) if masked_last else stop
    if masked_first:
        carry = lax.fori_loop(first, whole_first, lambda n, c: body(n, c, True), carry)
    carry = lax.fori_loop(whole_first, whole_stop, lambda n, c: body(n, c, False), carry)
    if masked_last:
        carry = lax.fori_loop(whole_stop, stop, lambda n, c: body(n, c, True), carry)
    return carry
