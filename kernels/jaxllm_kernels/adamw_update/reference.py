"""AdamW step in the words of the paper (arXiv 1711.05101, algorithm 2), in float64: the oracle."""

import jax.numpy as jnp
import numpy as np


def adamw_step(w, m, v, g, *, learning_rate, b1, b2, eps, weight_decay, step):
    """Return (w, m, v) after step number `step` (from 1), in NumPy float64, unrounded."""
    w, m, v, g = (np.asarray(jnp.asarray(x).astype(jnp.float32), np.float64) for x in (w, m, v, g))
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat, v_hat = m / (1 - b1**step), v / (1 - b2**step)
    return w - learning_rate * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w), m, v
