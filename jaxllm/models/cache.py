"""The key-value cache: what decoding remembers of the tokens so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig


def init_cache(config: ModelConfig, batch_size: int, max_length: int) -> dict:
    """Return an empty cache for `max_length` tokens a row, padding included.

    Returns:
      {"key", "value": [L, B, S, G, K] in config.dtype, "valid": bool [B, S] (slots that hold a
      token and not padding), "length": int32 [] (slots written)}.
    """
    shape = (
        config.num_layers,
        batch_size,
        max_length,
        config.num_kv_heads,
        config.head_dim,
    )
    return {
        "key": jnp.zeros(shape, config.dtype),
        "value": jnp.zeros(shape, config.dtype),
        "valid": jnp.zeros((batch_size, max_length), bool),
        "length": jnp.zeros((), jnp.int32),
    }


class LayerCache(NamedTuple):
    """The whole cache seen from one layer. All layers share the two big arrays, so that a scan
    carries them and writes in place instead of copying a layer's slice in and out."""

    key_LBSGK: jax.Array
    value_LBSGK: jax.Array
    valid_BS: jax.Array
    start: jax.Array  # slot of the first new token
    layer: jax.Array

    def write(self, key_BTGK: jax.Array, value_BTGK: jax.Array) -> "LayerCache":
        """Put this layer's keys and values of the new tokens at `start`."""

        def written(cache_LBSGK, new_BTGK):
            new = new_BTGK[None].astype(cache_LBSGK.dtype)
            return jax.lax.dynamic_update_slice(cache_LBSGK, new, (self.layer, 0, self.start, 0, 0))

        return self._replace(
            key_LBSGK=written(self.key_LBSGK, key_BTGK),
            value_LBSGK=written(self.value_LBSGK, value_BTGK),
        )

    @property
    def key_BSGK(self) -> jax.Array:
        """Return this layer's keys."""
        return jax.lax.dynamic_index_in_dim(self.key_LBSGK, self.layer, keepdims=False)

    @property
    def value_BSGK(self) -> jax.Array:
        """Return this layer's values."""
        return jax.lax.dynamic_index_in_dim(self.value_LBSGK, self.layer, keepdims=False)

    def visible(self, T: int, window: int) -> jax.Array:
        """Return which slots each of T new tokens may see: bool [B, T, S].

        Padding is on the left, so between two tokens of a row slots and positions differ by the
        same amount, and the window can be measured in slots.
        """
        slot_S = jnp.arange(self.valid_BS.shape[1])
        distance_TS = (self.start + jnp.arange(T))[:, None] - slot_S[None, :]
        near_TS = distance_TS >= 0
        if window:
            near_TS = near_TS & (distance_TS < window)
        return near_TS[None] & self.valid_BS[:, None, :]
