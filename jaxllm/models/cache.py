"""What decoding remembers of the tokens so far: keys and values, or a recurrent state.

Elsewhere a cache is a pytree that `init_cache` makes and the functions here fork and select from, with two
keys that one may read: "length", the slots written, and, once keys and values were forked, "shared", the
prompts that rows continue, which every step reads and none writes, as "context" of an encoder-decoder.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxllm_kernels import attention as kernel

from jaxllm.models.architecture import cache_axes, init_cache
from jaxllm.models.config import LanguageModel, ModelConfig, check_decodes
from jaxllm.models.shared_prefix import Prefix, merge

# The axis of the rows in each of a cache's entries, from the end: as in a stack of layers, so in a tuple.
_ROWS = {"key": -4, "value": -4, "valid": -2, "conv": -3, "state": -3}


@init_cache.register
def init_key_values(
    config: ModelConfig, batch_size: int, max_length: int, *, apart: bool = False
) -> dict:
    """Return an empty cache of a transformer; see `architecture.init_cache`."""
    check_decodes(config)
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


@cache_axes.register
def key_value_axes(config: ModelConfig) -> dict:
    """Return the names of a transformer's cache; see `architecture.cache_axes`.

    Slots are not split: every new token is written to one of them and reads all.
    """
    del config
    one = ("layers", "batch", "kv_heads", None, "head_dim")
    return {"key": one, "value": one, "valid": ("batch", None), "length": ()}


def fork_cache(cache: dict, rows_B, slots: int) -> dict:
    """Return a cache of B new rows that continue rows of another cache.

    Keys and values so far are not copied: they are held once, and read once a step, however many rows
    continue them. A recurrent state changes with every token: each row has a copy. The cache given stays
    good, and a cache that was forked may be forked again.

    Args:
      cache: of P rows.
      rows_B: which of them each new row continues, known to the host.
      slots: how many more tokens a row may hold.
    """
    if "parts" in cache:
        return _of_parts(cache, lambda part: fork_cache(part, rows_B, slots))
    if "context" in cache:
        return _forked_rows(cache, rows_B, slots)
    if "key" not in cache:
        return select_rows(cache, rows_B) | {"length": jnp.copy(cache["length"])}  # the fork is donated
    prefix = Prefix.of(cache["key"], cache["value"], cache["valid"], rows_B)
    shared = (prefix, *(older.continued(rows_B) for older in cache.get("shared", ())))
    written = {"key": cache["key"], "value": cache["value"]}
    return _empty_like(written, len(rows_B), slots) | {"shared": shared}


def _forked_rows(cache: dict, rows_B, slots: int) -> dict:
    context = cache["context"].continued(rows_B)
    own = select_rows({name: x for name, x in cache.items() if name != "context"}, rows_B)
    spread = lambda x, axis: jnp.pad(x, [(0, slots if at == axis else 0) for at in range(x.ndim)])
    for name in ("key", "value"):
        own[name] = jax.tree.map(lambda x: spread(x, x.ndim - 2), own[name])
    valid_BS, length = spread(own["valid"], 1), jnp.copy(own["length"])  # the fork is donated
    return own | {"valid": valid_BS, "length": length, "context": context}


# As one program: one array at a time, the arrays of all layers take longer than a step.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _empty_like(keys_and_values: dict, batch_size: int, slots: int) -> dict:
    def empty(x):
        return jnp.zeros((*x.shape[:-4], batch_size, x.shape[-3], slots, x.shape[-1]), x.dtype)

    return jax.tree.map(empty, keys_and_values) | {
        "valid": jnp.zeros((batch_size, slots), bool),
        "length": jnp.zeros((), jnp.int32),
    }


def select_rows(cache: dict, rows_B) -> dict:
    """Return a cache of some of the rows, in the order given; known to the host."""
    if "parts" in cache:
        return _of_parts(cache, lambda part: select_rows(part, rows_B))
    index_B = jnp.asarray(rows_B, jnp.int32)
    selected = dict(cache)
    for name, axis in _ROWS.items():
        if name in cache:
            selected[name] = jax.tree.map(
                lambda x: jnp.take(x, index_B, axis=x.ndim + axis),  # noqa: B023
                cache[name],
            )
    if "shared" in cache:
        selected["shared"] = tuple(prefix.continued(rows_B) for prefix in cache["shared"])
    if "context" in cache:
        selected["context"] = cache["context"].selected(rows_B)
    return selected


def rewind_cache(cache: dict, length: int) -> dict:
    """Return a cache of keys and values that has forgotten all but its first `length` slots."""
    valid_BS, length = _first_slots(cache["valid"], length)
    return cache | {"valid": valid_BS, "length": length}


@jax.jit
def _first_slots(valid_BS, length):
    slot_S = jnp.arange(valid_BS.shape[1], dtype=jnp.int32)
    return valid_BS & (slot_S < length), jnp.asarray(length, jnp.int32)


def cache_rows(cache: dict) -> int:
    """Return how many rows a cache holds."""
    while "parts" in cache:
        cache = next(iter(cache["parts"].values()))
    name = next(name for name in _ROWS if name in cache)
    return jax.tree.leaves(cache[name])[0].shape[_ROWS[name]]


def cache_parts(cache: dict) -> dict[str, dict]:
    """Return the caches of a hybrid's parts, each with the prompts it shares, which a step reads alone."""
    shared = cache.get("shared", {})
    parts = cache["parts"].items()
    return {name: one | ({"shared": shared[name]} if name in shared else {}) for name, one in parts}


def _of_parts(cache: dict, change) -> dict:
    parts = {name: change(one) for name, one in cache_parts(cache).items()}
    shared = {name: one.pop("shared") for name, one in parts.items() if "shared" in one}
    length = jnp.copy(next(iter(parts.values()))["length"])
    return {"parts": parts, "length": length} | ({"shared": shared} if shared else {})


def seen_B1(cache: dict) -> jax.Array:
    """Return how many tokens each row has behind it: its next token's position."""
    shared_B = sum(prefix.seen_B() for prefix in cache.get("shared", ()))
    return (jnp.sum(cache["valid"], axis=1, dtype=jnp.int32) + shared_B)[:, None]


def place_tokens(cache: dict, mask_BT: jax.Array) -> tuple[jax.Array, dict]:
    """Return (positions of the next tokens [B, T], the cache with their slots valid)."""
    positions_BT = seen_B1(cache) + jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32) - 1
    valid_BS = jax.lax.dynamic_update_slice_in_dim(cache["valid"], mask_BT, cache["length"], axis=1)
    return jnp.maximum(positions_BT, 0), cache | {"valid": valid_BS}


def where_it_fits(
    config: LanguageModel, hidden_BTD: jax.Array, positions_BT: jax.Array, cache: dict | None = None
) -> jax.Array:
    """Return hidden states, NaN at positions that a learned table does not have, or all if a cache is full.

    A row beyond the table is looked up as its last, and what is written past a cache's end replaces its last
    tokens: in silence.

    Args:
      cache: as it was before these tokens.
    """
    fits_BT = True
    if config.most_positions is not None:
        fits_BT = (positions_BT >= 0) & (positions_BT < config.most_positions)
    if cache is not None:
        fits_BT &= cache["length"] + hidden_BTD.shape[1] <= cache["valid"].shape[1]
    return jnp.where(jnp.broadcast_to(fits_BT, hidden_BTD.shape[:2])[..., None], hidden_BTD, jnp.nan)


class LayerCache(NamedTuple):
    """The cache seen from one layer. Layers that are scanned share the two big arrays, so that the
    scan carries them and writes in place instead of copying a layer's slice in and out. Heads come
    before slots, so that a head's keys are read in one sweep."""

    key: jax.Array  # [L, B, G, S, K], or [B, G, S, K]: this layer's own
    value: jax.Array
    valid_BS: jax.Array
    start: jax.Array  # slot of the first new token
    layer: jax.Array | None  # index into L; None where there is none
    shared: tuple[Prefix, ...]  # this layer's part of prompts that the rows continue, the latest first

    NAMES = ("key", "value")

    @classmethod
    def of(cls, cache: dict, arrays, index) -> "LayerCache":
        """Return a layer's view: of its own key and value, or of the stacks of all layers."""
        apart = isinstance(cache["key"], tuple)

        shared = tuple(prefix.layer(index) for prefix in cache.get("shared", ()))
        return cls(*arrays, cache["valid"], cache["length"], None if apart else index, shared)

    @property
    def arrays(self) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values that `of` was given, written to."""
        return self.key, self.value

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

    def attend(self, query_BTHK: jax.Array, window: int, *, sink, **options) -> jax.Array:
        """Return what the queries of new tokens find in their row and in the prompts it continues.

        Args:
          query_BTHK: queries of tokens that were written.
          window: how many positions back a query sees, itself included; 0: all.
          sink: see `jaxllm_kernels.attention.attention`.
          **options: scale and implementation.
        """
        mask_BTS, options = self.visible(query_BTHK.shape[1], window), dict(causal=False, **options)
        own = self.key_BSGK, self.value_BSGK
        parts = [kernel.attention_with_lse(query_BTHK, *own, mask_BTS=mask_BTS, **options)]
        _, since_BT = self._counts(query_BTHK.shape[1])
        for prefix in self.shared:
            parts.append(prefix.attend(query_BTHK, since_BT, window, **options))
            since_BT = since_BT + prefix.seen_B()[:, None]
        return merge(parts, kernel.sink_logits(sink, query_BTHK.shape[2]))

    def visible(self, T: int, window: int) -> jax.Array:
        """Return which slots each of T new tokens may see: bool [B, T, S].

        A window is of a row's tokens: padding, and slots that are valid no more, take no place in it.
        """
        slot_S = jnp.arange(self.valid_BS.shape[1], dtype=jnp.int32)
        before_TS = (self.start + jnp.arange(T, dtype=jnp.int32))[:, None] >= slot_S[None, :]
        seen_BTS = before_TS[None] & self.valid_BS[:, None, :]
        if window:
            count_BS, count_BT = self._counts(T)
            seen_BTS = seen_BTS & (count_BT[:, :, None] - count_BS[:, None, :] < window)
        return seen_BTS

    def _counts(self, T: int) -> tuple[jax.Array, jax.Array]:
        """Return how many of a row's tokens there are up to each slot [B, S], and each new one [B, T]."""
        count_BS = jnp.cumsum(self.valid_BS, axis=1, dtype=jnp.int32)
        return count_BS, jax.lax.dynamic_slice_in_dim(count_BS, self.start, T, axis=1)
