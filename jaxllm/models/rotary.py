"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split order of Llama."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import Config, Positive, Size
from jaxllm.errors import UserError

SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling(Config):
    """How frequencies are lowered for texts longer than those first trained on.

    "linear" divides all by `factor` (arXiv 2306.15595). "llama3" divides those that turn fewer than
    `low_freq_factor` times in `original_context` tokens, leaves those that turn more than `high_freq_factor`
    times, and goes from one to the other between (Llama 3.1's release).

    Raises:
      UserError: a value that its field may not hold, or an empty range between the two factors.
    """

    kind: Literal[SCALINGS] = "none"
    factor: Positive = 1.0
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_context: Size = 8192

    _prefix = "rope_scaling."

    def __post_init__(self):
        super().__post_init__()
        if self.low_freq_factor >= self.high_freq_factor:
            raise UserError(
                f"rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
                f"high_freq_factor={self.high_freq_factor}"
            )


def rotary_frequencies(dim: int, theta: float, scaling: RopeScaling = RopeScaling()) -> np.ndarray:
    """Return the angle by which each pair turns from one position to the next: float32 [dim/2].

    Examples:
      >>> rotary_frequencies(4, 100.0), rotary_frequencies(4, 100.0, RopeScaling("linear", 2.0))
      (array([1. , 0.1], dtype=float32), array([0.5 , 0.05], dtype=float32))
    """
    frequency = theta ** (-np.arange(0, dim, 2) / dim)
    if scaling.kind == "linear":
        frequency = frequency / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_context * frequency / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        whole = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (whole + (1 - whole) / scaling.factor)
    return frequency.astype(np.float32)


def rotary_table(
    positions_BT: jax.Array, dim: int, theta: float, scaling: RopeScaling = RopeScaling()
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines, each float32 [B, T, 1, dim/2], of position * frequency."""
    frequency = jnp.asarray(rotary_frequencies(dim, theta, scaling))
    angle_BTK = positions_BT[..., None].astype(jnp.float32) * frequency[None, None]
    return jnp.cos(angle_BTK)[:, :, None, :], jnp.sin(angle_BTK)[:, :, None, :]


def rotate(x_BTHK: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the pairs (i, i + dim/2) of every head by its position's angle; keep the dtype.

    A table for fewer than K numbers of a head leaves the rest as they are.
    """
    cos, sin = table
    dim = 2 * cos.shape[-1]
    if dim < x_BTHK.shape[-1]:
        return jnp.concatenate([rotate(x_BTHK[..., :dim], table), x_BTHK[..., dim:]], axis=-1)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)
