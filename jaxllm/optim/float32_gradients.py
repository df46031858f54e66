"""Gradients in float32, for wrappers that choose between an update and none."""

import jax
import jax.numpy as jnp
import optax


def float32_gradients() -> optax.GradientTransformation:
    """Widen gradients to float32: the first link, before a wrapper such as `optax.apply_if_finite`.

    Links of this package emit float32 updates, since one of bfloat16 lands on the rounded weight only
    where that changes little. A wrapper that puts zeros or the gradients themselves in their place
    (`optax.apply_if_finite`, `optax.conditionally_transform`) needs gradients of the updates' type.

    Examples:
      >>> from jaxllm.optim import adamw_bf16_sr
      >>> params = jnp.ones(2, jnp.bfloat16)
      >>> optimizer = optax.chain(float32_gradients(), optax.apply_if_finite(adamw_bf16_sr(0.5), 3))
      >>> updates, state = optimizer.update(params * jnp.nan, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [1 1]
    """
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: u.astype(jnp.float32), updates)
    )
