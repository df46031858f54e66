"""Inputs of the selective scan's tests, and its gradients in float64 by jax's own rules."""

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("u", "delta", "A", "B", "C", "skip", "state")


def draw(B, T, D, N, dtype="float32"):
    """Return {name: array} of all inputs but the ids; A, skip and state in float32."""
    rng = np.random.default_rng(B + T + D + N)
    arrays = {
        "u": rng.normal(size=(B, T, D)),
        "delta": np.log1p(np.exp(rng.normal(size=(B, T, D)) - 1)),
        "A": -np.exp(rng.normal(size=(D, N))),
        "B": rng.normal(size=(B, T, N)),
        "C": rng.normal(size=(B, T, N)),
        "skip": rng.normal(size=D),
        "state": rng.normal(size=(B, D, N)),
    }
    wide = ("A", "skip", "state")
    return {name: jnp.asarray(x, "float32" if name in wide else dtype) for name, x in arrays.items()}


def draw_ids(B, T):
    """Return int32 [B, T]: documents of about seven positions."""
    return np.cumsum(np.random.default_rng(T).random((B, T)) < 1 / 7, axis=1).astype(np.int32)


def objective(y, state):
    """Return a scalar whose gradient differs at every output."""
    y, state = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (y, state))
    return jnp.sum(jnp.sin(y + 0.3)) + jnp.sum(jnp.cos(2 * state))


def exact_gradients(arrays, ids=None):
    """Return the float64 gradients of the objective of a plain loop, which the reference confirms."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        wide = {name: jnp.asarray(np.asarray(x, np.float64)) for name, x in arrays.items()}
        T = wide["u"].shape[1]
        keep = np.ones((T, len(wide["u"])))
        if ids is not None:
            keep[1:] = (ids[:, 1:] == ids[:, :-1]).T

        def loss(arrays):
            u, delta, B, C = (arrays[name].swapaxes(0, 1) for name in ("u", "delta", "B", "C"))

            def step(h, x):
                u, delta, B, C, keep = x
                h = jnp.exp(delta[..., None] * arrays["A"]) * h * keep[:, None, None]
                h = h + (delta * u)[..., None] * B[:, None]
                return h, jnp.einsum("bdn,bn->bd", h, C) + arrays["skip"] * u

            h, y = jax.lax.scan(step, arrays["state"], (u, delta, B, C, jnp.asarray(keep)))
            return objective(y, h)

        return {name: np.asarray(x) for name, x in jax.jit(jax.grad(loss))(wide).items()}
