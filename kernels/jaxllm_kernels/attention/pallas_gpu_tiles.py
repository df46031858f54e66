"""What the GPU kernels of attention share: tile sizes, masked loads and the pieces of a block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm_kernels.attention.visibility import NOTHING


class Tiles(NamedTuple):
    """Positions in a block of queries and keys, and Triton's warps and pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


def tiles_for(T: int, S: int, K: int, itemsize: int, *, backward: bool, plain: bool) -> Tiles:
    """Return tile sizes: the fastest on an H100 of those that spill at most some registers of an A100.

    Args:
      itemsize: bytes of a channel.
      plain: no window, no segment ids.
    """
    width = channels_loaded(K)
    wide = width * itemsize // 2  # channels, if they had 2 bytes each
    # Masks of ids, channels and rows past the end take registers too.
    crowded = not plain or K < width or T % 128 > 0 or S % 64 > 0
    if wide > 128:
        tiles = Tiles(32 if backward else 64, 32, 8, 1)
    elif backward and itemsize > 2:
        tiles = Tiles(32, 32, 8 if wide > 64 else 4, 1)
    elif wide > 64 and crowded:
        tiles = Tiles(32 if backward else 64, 64, 8, 2)
    elif wide > 64:
        tiles = Tiles(64, 64, 4, 2) if backward else Tiles(128, 64, 8, 3)
    elif crowded:
        tiles = Tiles(32, 32, 4, 2) if backward else Tiles(64, 64, 4, 2)
    else:
        tiles = Tiles(64, 64, 4, 3) if backward else Tiles(64, 128, 4, 2)
    # Triton's matmuls need 16 rows or more.
    most = max(16, pl.next_power_of_2(max(T, S)))
    return tiles._replace(queries=min(tiles.queries, most), keys=min(tiles.keys, most))


def channels_loaded(K: int) -> int:
    """Return how many channels a block has: a power of two, and 16 or more.

    With 8 channels of bfloat16 an H100 computes other scores: its product takes 16 at a time.
    """
    return max(16, pl.next_power_of_2(K))


def padded(x_size: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-x_size // multiple) * multiple


def load_rows(ref, start, rows: int, total: int, K: int, between=()):
    """Load some rows of [total, *between, K]; what lies past the end is zero.

    Args:
      between: indices of the axes between rows and channels.
    """
    at = ref.at[(pl.ds(start, rows), *between, slice(None))]
    return _load(at, _inside(start, rows, total, K, ref.shape[-1]))


def load_block(ref, start, total: int, K: int):
    """Load the block of [total, K] that begins at `start` and is all of the ref."""
    return _load(ref.at[...], _inside(start, ref.shape[0], total, K, ref.shape[1]))


def load_vector(ref, start, rows: int, total: int, before=()):
    """Load some entries of [*before, total]; what lies past the end is zero."""
    mask = start + jnp.arange(rows, dtype=jnp.int32) < total if total % rows else None
    return _load(ref.at[(*before, pl.ds(start, rows))], mask)


def store_rows(ref, x, start, total: int, K: int):
    """Store rows that begin at `start` of [total, K] into their block, leaving out the padding."""
    mask = _inside(start, x.shape[0], total, K, x.shape[1])
    plgpu.store(ref.at[...], x.astype(ref.dtype), mask=mask)


def masked_scores(query_tK, key_sK, scale, t0, s0, *, S, causal, window, ids, masked) -> jax.Array:
    """Return one block of scaled scores [t, s]; with masked=False nothing is hidden."""
    scores_ts = scale * jnp.dot(query_tK, key_sK.T, preferred_element_type=jnp.float32)
    if not masked:
        return scores_ts
    t = t0 + jnp.arange(len(query_tK), dtype=jnp.int32)[:, None]
    s = s0 + jnp.arange(len(key_sK), dtype=jnp.int32)[None, :]
    seen = []
    if S % len(key_sK):
        seen.append(s < S)
    if causal:
        seen.append(t >= s)
    if window:
        seen.append(t - s < window)
    if ids is not None:
        seen.append(ids[0][:, None] == ids[1][None, :])
    for part in seen:
        scores_ts = jnp.where(part, scores_ts, NOTHING)
    return scores_ts


def _load(at, mask):
    return plgpu.load(at) if mask is None else plgpu.load(at, mask=mask, other=0)


def _inside(start, rows, total, K, width):
    mask = None
    if total % rows:
        mask = (start + jnp.arange(rows, dtype=jnp.int32) < total)[:, None]
    if K < width:
        channels = (jnp.arange(width, dtype=jnp.int32) < K)[None, :]
        mask = channels if mask is None else mask & channels
    return None if mask is None else jnp.broadcast_to(mask, (rows, width))
