"""What an encoder-decoder's decoding remembers: tokens of its own, and keys and values of the context."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.architecture import cache_axes, decode, init_cache, prefill
from jaxllm.models.encoder_decoder import Context, EncoderDecoderConfig, declare_heads, encode
from jaxllm.models.linear import linears
from jaxllm.models.shared_prefix import Prefix


def context_cache(config: EncoderDecoderConfig, params: dict, context: Context, max_length: int) -> dict:
    """Return an empty cache for `max_length` tokens a row, with each layer's keys and values of the context.

    Returns:
      What a transformer's `init_cache` does, and "context", the `Prefix` that rows attend to: made once, and
      held once for all rows that fork one.
    """
    apart, declared = isinstance(params["layers"], tuple), declare_heads(config)
    hidden_BSD, mask_BS = context
    B, shape = len(mask_BS), (len(mask_BS), config.num_heads, max_length, config.head_dim)

    def keys_and_values(layer):
        made = linears(hidden_BSD.astype(config.dtype), layer["cross"], declared, "key", "value")
        return tuple(x_BSHK.swapaxes(1, 2) for x_BSHK in made)

    if apart:
        key, value = zip(*map(keys_and_values, params["layers"]), strict=True)
        empty = tuple(jnp.zeros(shape, config.dtype) for _ in params["layers"])
    else:
        key, value = jax.lax.map(keys_and_values, params["layers"])
        empty = jnp.zeros((config.num_layers, *shape), config.dtype)
    return {
        "key": empty,
        "value": jax.tree.map(jnp.zeros_like, empty),
        "valid": jnp.zeros((B, max_length), bool),
        "length": jnp.zeros((), jnp.int32),
        "context": Prefix.of(key, value, mask_BS, np.arange(B)),
    }


@prefill.register
def _read_source(config: EncoderDecoderConfig, params: dict, tokens_BT: jax.Array, mask_BT, *, slots: int):
    context = encode(config, params, tokens_BT, mask_BT)
    cache = context_cache(config, params, context, slots)
    start_B1 = jnp.full((len(tokens_BT), 1), config.start_id, jnp.int32)
    hidden_B1D, cache = decode(config, params, start_B1, cache)
    return hidden_B1D[:, 0], cache


@init_cache.register
def _no_context(
    config: EncoderDecoderConfig, batch_size: int, max_length: int, *, apart: bool = False
) -> dict:
    raise UserError(
        "an encoder-decoder's cache begins with a context: models.context_cache(config, params, "
        "models.encode(...), max_length) makes it"
    )


@cache_axes.register
def context_cache_axes(config: EncoderDecoderConfig) -> dict:
    """Return the names of an encoder-decoder's cache; see `architecture.cache_axes`."""
    del config
    one = ("layers", "batch", "heads", None, "head_dim")
    context = Prefix(one, one, ("batch", None), (None, None), ("batch",))
    return {"key": one, "value": one, "valid": ("batch", None), "length": (), "context": context}
