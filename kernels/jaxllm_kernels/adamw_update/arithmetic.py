"""The float32 arithmetic of one AdamW step, and its storage."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm_kernels.adamw_update.rounding import stochastic_round


def scalars(learning_rate, b1, b2, eps, weight_decay, step) -> jax.Array:
    """Return float32 [8]: b1, 1 - b1, b2, 1 - b2, lr / (1 - b1**t), 1 / (1 - b2**t), eps, lr * wd.

    1 - b**t is taken as -expm1(t log b), which keeps its digits where b**t is near 1.
    """
    t = jnp.asarray(step).astype(jnp.float32)

    def correction(b):
        with np.errstate(divide="ignore"):  # b = 0 gives log -inf, and a correction of 1
            return -jnp.expm1(t * (jnp.log(b) if isinstance(b, jax.Array) else float(np.log(b))))

    values = (
        b1, 1 - b1, b2, 1 - b2,
        learning_rate / correction(b1), 1 / correction(b2), eps, learning_rate * weight_decay,
    )  # fmt: skip
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in values])


def step_float32(w, m, v, g, s):
    """Return (w, m, v) after the step, in float32; `s` as `scalars` returns it."""
    w, m, v, g = (x.astype(jnp.float32) for x in (w, m, v, g))
    m = s[0] * m + s[1] * g
    v = s[2] * v + s[3] * (g * g)
    return w - (s[4] * m / (jnp.sqrt(v * s[5]) + s[6]) + s[7] * w), m, v


def store(new, dtypes, words, round_weights: bool, round_moments: bool):
    """Return the three float32 results in their dtypes, rounded stochastically where asked.

    One 32-bit word serves all three: its lower half the weights, its upper half the second moment, and
    the exclusive or of both the first. Any two of these are independent, so no two roundings correlate.
    """
    w, m, v = new
    if round_weights:
        w = stochastic_round(w, words, dtypes[0])
    if round_moments:
        m = stochastic_round(m, words ^ (words >> 16), dtypes[1])
        v = stochastic_round(v, words >> 16, dtypes[2])
    return tuple(x.astype(dtype) for x, dtype in zip((w, m, v), dtypes, strict=True))
