"""LayerNorm and RMSNorm, in float32 whatever goes in."""

import jax
import jax.numpy as jnp


def normalize(x_BTD: jax.Array, params: dict, kind: str, eps: float) -> jax.Array:
    """Normalise over the width; return the dtype that came in.

    Args:
      x_BTD: [..., D].
      params: {"scale": [D], or [] for the scalar gain of rmsnorm_scalar (Qin et al. 2023, as used
        with OrthoAdam, arXiv 2410.17174), "bias": [D] optional}.
      kind: "layernorm" subtracts the mean; "rmsnorm" (arXiv 1910.07467) and "rmsnorm_scalar" do
        not.
      eps: added to the variance.
    """
    x = x_BTD.astype(jnp.float32)
    if kind == "layernorm":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    x = x * _per_channel(params["scale"], x)
    if "bias" in params:
        x = x + _per_channel(params["bias"], x)
    return x.astype(x_BTD.dtype)


def _per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return [D] or a scalar in float32, as many axes as x: a user may forbid implicit ones."""
    return jax.lax.broadcast_to_rank(values.astype(jnp.float32), x.ndim)
