"""A weight with a product of two narrow matrices added to it, multiplied without making the sum."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("weight", "down", "up", "key"),
    meta_fields=("scale", "dropout"),
)
@dataclass(frozen=True)
class LowRank:
    """weight + scale * down @ up; `linear` computes x @ weight + scale * (dropped(x) @ down) @ up.

    Neither the sum nor its gradient is ever in memory. All arrays of a stack have its axis of layers first.
    """

    weight: jax.Array  # [in..., out...]
    down: jax.Array  # [in..., R]
    up: jax.Array  # [R, out...]
    key: jax.Array | None = None  # uint32 key data of the dropout; None: nothing is dropped
    scale: float = 1.0
    dropout: float = 0.0  # the part of the inputs of `down` that is dropped

    def multiply(
        self, x_NI: jax.Array, product: Callable, axes: tuple[str, ...], in_axes: int
    ) -> tuple[jax.Array, tuple[int, ...]]:
        """Return (x times the sum [N, out] in x's dtype, the shape of the outputs).

        Args:
          x_NI: the rows.
          product: (x, weight, names of its axes, how many are inputs) -> x times the weight.
          axes: names of the axes of the weight.
          in_axes: how many of them, the first, are inputs.
        """
        y_NO = product(x_NI, self.weight, axes, in_axes)
        x_NR = product(self.dropped(x_NI), self.down, (*axes[:in_axes], None), in_axes)
        y_NO += self.scale * product(x_NR, self.up, (None, *axes[in_axes:]), 1)
        return y_NO, self.weight.shape[in_axes:]

    def dropped(self, x_NI: jax.Array) -> jax.Array:
        """Return the inputs of `down`: some of them zero, the others scaled up to the same mean."""
        if self.key is None or not self.dropout:
            return x_NI
        kept = jax.random.bernoulli(jax.random.wrap_key_data(self.key), 1 - self.dropout, x_NI.shape)
        return jnp.where(kept, x_NI / (1 - self.dropout), 0).astype(x_NI.dtype)

    def merged(self, in_axes: int, stacked: bool = False) -> jax.Array:
        """Return the sum, in the weight's type; the product is float32.

        Args:
          in_axes: how many axes of the weight are inputs, those of a stack not counted.
          stacked: all arrays have an axis of layers first.
        """

        def one(weight, down, up):
            inputs = math.prod(weight.shape[:in_axes])
            down, up = (x.astype(jnp.float32) for x in (down.reshape(inputs, -1), up.reshape(len(up), -1)))
            product = jnp.matmul(down, up, precision="highest").reshape(weight.shape)
            return (weight.astype(jnp.float32) + self.scale * product).astype(weight.dtype)

        return (jax.vmap(one) if stacked else one)(self.weight, self.down, self.up)
