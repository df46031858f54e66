"""Selective scan in the words of the paper (arXiv 2312.00752, algorithm 2), in float64: the oracle."""

import jax.numpy as jnp
import numpy as np


def selective_scan(u, delta, A, B, C, *, skip=None, state=None, segment_ids=None):
    """Return (y [B, T, D], the state after the last position [B, D, N]), in NumPy float64.

    Shapes as in `api.selective_scan`.
    """
    u, delta, A, B, C = map(_float64, (u, delta, A, B, C))
    h = np.zeros((u.shape[0], *A.shape)) if state is None else _float64(state)
    y = np.zeros(u.shape)
    for t in range(u.shape[1]):
        if segment_ids is not None and t:
            h = h * (segment_ids[:, t] == segment_ids[:, t - 1])[:, None, None]
        h = np.exp(delta[:, t, :, None] * A) * h + (delta * u)[:, t, :, None] * B[:, t, None]
        y[:, t] = np.sum(h * C[:, t, None], axis=-1)
    return (y if skip is None else y + u * _float64(skip)), h


def _float64(x):
    return np.asarray(jnp.asarray(x).astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, np.float64)
