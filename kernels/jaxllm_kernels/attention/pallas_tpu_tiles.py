"""What the TPU kernels of attention share: tile sizes and the pieces of a block of scores."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm_kernels.attention.blocks import divide, key_blocks
from jaxllm_kernels.attention.visibility import NOTHING

LANES = 128
LOG2E = math.log2(math.e)
_BLOCK = 512  # positions in a block
_PANEL_BYTES = 4 * 2**20  # of VMEM for the panels of two arrays, twice each: one is fetched ahead


class Tiles(NamedTuple):
    """Positions held at a time."""

    queries: int
    keys: int
    key_panel: int  # keys in VMEM while their blocks are gone over; a multiple of `keys`
    query_panel: int  # the same of queries, in the backward pass of keys

    @property
    def key_blocks(self) -> int:
        return self.key_panel // self.keys

    @property
    def query_blocks(self) -> int:
        return self.query_panel // self.queries


def tiles_for(T: int, S: int, R: int, K: int, itemsize: int) -> Tiles:
    """Return tile sizes for a call; R is how many query heads share a key head."""
    queries = min(_BLOCK if R <= 4 else _BLOCK // 2 if R <= 8 else LANES, _up(T, LANES))
    keys = min(_BLOCK, _up(S, LANES))
    panel = _PANEL_BYTES // (4 * _up(K, LANES) * itemsize)
    return Tiles(
        queries=queries,
        keys=keys,
        key_panel=min(max(panel // keys, 1) * keys, _up(S, keys)),
        query_panel=min(max(panel // R // queries, 1) * queries, _up(T, queries)),
    )


def panel_index(i, panel, *, tiles: Tiles, S, causal, window):
    """Return the panel of keys for a step of query block i: one of those it sees something of.

    A step whose own panel is hidden names a neighbour's, which then is not fetched again.
    """
    if S <= tiles.key_panel:
        return 0
    visits = key_blocks(i, tiles.queries, tiles.keys, S, causal, window)
    last = divide(jnp.maximum(jnp.int32(visits.stop) - 1, 0), tiles.key_blocks)
    first = jnp.minimum(divide(jnp.int32(visits.first), tiles.key_blocks), last)
    return jnp.clip(panel, first, last)


def masked_scores(
    key_sK, query_tK, scale, first_query, first_key, *, S, causal, window, ids, masked
) -> jax.Array:
    """Return one block of scaled scores, keys first; with masked=False nothing is hidden."""
    scores_st = scale * jax.lax.dot_general(
        key_sK, query_tK, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    if not masked:
        return scores_st
    s = first_key + jax.lax.broadcasted_iota(jnp.int32, scores_st.shape, 0)
    t = first_query + jax.lax.broadcasted_iota(jnp.int32, scores_st.shape, 1)
    seen = []
    if S % len(key_sK):
        seen.append(s < S)
    if causal:
        seen.append(t >= s)
    if window:
        seen.append(t - s < window)
    if ids is not None:
        query_ids_1t, key_ids_sx = ids
        seen.append(jnp.tile(key_ids_sx, (1, scores_st.shape[1] // LANES)) == query_ids_1t)
    for part in seen:
        scores_st = jnp.where(part, scores_st, NOTHING)
    return scores_st


def key_ids_column(ids_1s: jax.Array) -> jax.Array:
    """Turn a row of ids into a column, repeated over one register's lanes: [s, LANES]."""
    return jnp.broadcast_to(ids_1s, (LANES, ids_1s.shape[1])).T


def rows_below(x_sK: jax.Array, limit) -> jax.Array:
    """Set the rows from `limit` on to zero, whatever they hold."""
    rows = jax.lax.broadcasted_iota(jnp.int32, x_sK.shape, 0)
    return jnp.where(rows < limit, x_sK, jnp.zeros_like(x_sK))


def rows_of_blocks(x: jax.Array, block: int, multiple: int | None = None) -> jax.Array:
    """Cut the last axis into blocks: [..., blocks, 1, block], zeros appended to fill the last."""
    length = _up(x.shape[-1], multiple or block)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])
    return padded.reshape(*x.shape[:-1], length // block, 1, block)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
