"""How attention's arrays are arranged for matmuls over groups of heads."""

import jax
import jax.numpy as jnp


def for_rows(hidden_Bts: jax.Array, R: int) -> jax.Array:
    """Repeat a mask for the R heads of a group: [.., R * t, s]."""
    return hidden_Bts if R == 1 else jnp.tile(hidden_Bts, (1, R, 1))


def by_group(x_BTHK: jax.Array, G: int) -> jax.Array:
    """Return [B, G, H / G, T, K]."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)


def by_time(x_BGRTK: jax.Array) -> jax.Array:
    """Undo `by_group`."""
    B, G, R, T, K = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def dot(left_BGxy, right_BGxy, left_axis: int, right_axis: int, dtype) -> jax.Array:
    """Multiply matrices of each batch row and group, contracting the given axes."""
    if left_BGxy.shape[:2] == (1, 1):  # XLA's CPU backend is faster without axes of size 1
        axes = ((left_axis - 2,), (right_axis - 2,)), ((), ())
        return jax.lax.dot_general(
            left_BGxy[0, 0], right_BGxy[0, 0], axes, preferred_element_type=dtype
        )[None, None]
    axes = ((left_axis,), (right_axis,)), ((0, 1), (0, 1))
    return jax.lax.dot_general(left_BGxy, right_BGxy, axes, preferred_element_type=dtype)
