"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split order of Llama."""

import jax
import jax.numpy as jnp


def rotary_table(
    positions_BT: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines, each float32 [B, T, 1, K/2], of position * theta**(-2i/K)."""
    frequency_K = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle_BTK = positions_BT[..., None].astype(jnp.float32) * frequency_K[None, None]
    return jnp.cos(angle_BTK)[:, :, None, :], jnp.sin(angle_BTK)[:, :, None, :]


def rotate(x_BTHK: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the pairs (i, i + K/2) of every head by its position's angle; keep the dtype."""
    cos, sin = table
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)
