"""What an attention kernel costs, for the compiler's scheduler and for forecasts."""

import numpy as np
from jax.experimental import pallas as pl


def attention_cost(q, k, tiles, *, causal: bool, window: int | None, products: int) -> pl.CostEstimate:
    """Return the work on the blocks that are visited, with each input read once.

    Args:
      q: [B, T, H, K], or anything with that shape.
      k: [B, S, G, K].
      tiles: of the kernel: positions in a block of `queries` and of `keys`.
      products: matrix products of K channels for each score: 2 forward, 3 and 4 backward.
    """
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    start = np.arange(pl.cdiv(T, tiles.queries)) * tiles.queries
    first = np.maximum(start - window + 1, 0) // tiles.keys if window else 0
    stop = pl.cdiv(S, tiles.keys)
    if causal:
        stop = np.minimum(stop, -(-(start + tiles.queries) // tiles.keys))
    visited = int(np.sum(np.maximum(stop - first, 0) + np.zeros_like(start)))
    scores = B * H * visited * tiles.queries * tiles.keys
    return pl.CostEstimate(
        flops=2 * products * scores * K,
        transcendentals=scores,
        bytes_accessed=products * B * (T * H + S * G) * K * q.dtype.itemsize,
    )
