"""The key-value cache: what decoding remembers of the tokens so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig


def init_cache(
    config: ModelConfig, batch_size: int, max_length: int, *, apart: bool = False
) -> dict:
    """Return an empty cache for `max_length` tokens a row, padding included.

    Args:
      apart: one array a layer, for parameters whose layers are apart (`for_decoding`).

    Returns:
      {"key", "value": [L, B, G, S, K] in config.dtype, or a tuple of L arrays [B, G, S, K];
      "valid": bool [B, S] (slots that hold a token and not padding), "length": int32 [] (slots
      written)}.
    """
    shape = (batch_size, config.num_kv_heads, max_length, config.head_dim)

    def empty():
        if apart:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
        return jnp.zeros((config.num_layers, *shape), config.dtype)

    return {
        "key": empty(),
        "value": empty(),
        "valid": jnp.zeros((batch_size, max_length), bool),
        "length": jnp.zeros((), jnp.int32),
    }


def cache_axes() -> dict:
    """Return the logical axis names of each array of a stacked cache, structured like `init_cache`'s.

    Slots are not split: every new token is written to one of them and reads all.
    """
    one = ("layers", "batch", "kv_heads", None, "head_dim")
    return {"key": one, "value": one, "valid": ("batch", None), "length": ()}


class LayerCache(NamedTuple):
    """The cache seen from one layer. Layers that are scanned share the two big arrays, so that the
    scan carries them and writes in place instead of copying a layer's slice in and out. Heads come
    before slots, so that a head's keys are read in one sweep."""

    key: jax.Array  # [L, B, G, S, K], or [B, G, S, K]: this layer's own
    value: jax.Array
    valid_BS: jax.Array
    start: jax.Array  # slot of the first new token
    layer: jax.Array | None  # index into L; None where there is none

    def write(self, key_BTGK: jax.Array, value_BTGK: jax.Array) -> "LayerCache":
        """Put this layer's keys and values of the new tokens at `start`."""

        def written(cache, new_BTGK):
            new = new_BTGK.swapaxes(1, 2).astype(cache.dtype)
            # One more axis, even of length 1, would be reshaped away to be read: XLA fuses that with
            # the update, which the next step needs too, and so makes and copies the cache twice.
            if self.layer is None:
                return jax.lax.dynamic_update_slice_in_dim(cache, new, self.start, axis=2)
            zero = jnp.zeros_like(self.start)
            return jax.lax.dynamic_update_slice(cache, new[None], (self.layer, zero, zero, self.start, zero))

        return self._replace(key=written(self.key, key_BTGK), value=written(self.value, value_BTGK))

    @property
    def key_BSGK(self) -> jax.Array:
        """Return this layer's keys."""
        return self._mine(self.key)

    @property
    def value_BSGK(self) -> jax.Array:
        """Return this layer's values."""
        return self._mine(self.value)

    def _mine(self, cache):
        if self.layer is not None:
            cache = jax.lax.dynamic_index_in_dim(cache, self.layer, keepdims=False)
        return cache.swapaxes(1, 2)  # undone by the attention, so nothing moves

    def visible(self, T: int, window: int) -> jax.Array:
        """Return which slots each of T new tokens may see: bool [B, T, S].

        Padding is on the left, so between two tokens of a row slots and positions differ by the
        same amount, and the window can be measured in slots.
        """
        slot_S = jnp.arange(self.valid_BS.shape[1], dtype=jnp.int32)
        distance_TS = (self.start + jnp.arange(T, dtype=jnp.int32))[:, None] - slot_S[None, :]
        near_TS = distance_TS >= 0
        if window:
            near_TS = near_TS & (distance_TS < window)
        return near_TS[None] & self.valid_BS[:, None, :]
