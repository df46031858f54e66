"""Steps of an optimizer on random gradients, and parameters to begin with."""

import jax
import jax.numpy as jnp
import optax

BF16 = jnp.bfloat16


def run(optimizer, params, steps, gradient=None, state=None, start=0):
    """Take some jitted steps; gradient(t, params) defaults to noise that depends on t alone."""
    state = optimizer.init(params) if state is None else state

    def noise(t, params):
        keys = jax.random.split(jax.random.key(t), len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), keys)
        return jax.tree.map(lambda k, p: jax.random.normal(k, p.shape), keys, params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(start, start + steps):
        params, state = step(params, state, (gradient or noise)(t, params))
    return params, state


def tree(n=64):
    w = jax.random.normal(jax.random.key(1), (n, 16)).astype(BF16)
    return {"w": w, "gain": jnp.ones(n, BF16), "wide": jnp.ones(n)}
