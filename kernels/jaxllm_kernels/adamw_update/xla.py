"""AdamW step as one elementwise expression, which XLA compiles to one loop over the arrays."""

from jaxllm_kernels.adamw_update.arithmetic import step_float32, store


def adamw_update(w, m, v, g, scalars, words, *, round_weights, round_moments):
    """Return the new (w, m, v); `words` is None, uint16 or uint32, of w's shape."""
    new = step_float32(w, m, v, g, scalars)
    return store(new, (w.dtype, m.dtype, v.dtype), words, round_weights, round_moments)
