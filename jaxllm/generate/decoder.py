"""A model prepared to decode."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError


class Decoder:
    """A model with its weights laid out for decoding, once, for any number of calls.

    It unpacks as (config, params), so it goes wherever a model does: `generate(*decoder, prompts)`,
    `models.logits(*decoder, hidden)`. The parameters it was made from are not needed any more.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> decoder = Decoder(config, models.init(config, jax.random.key(0)))
      >>> hidden_BD, cache = decoder.prefill(np.array([[1, 2, 3]]), slots=5)
      >>> hidden_BD, cache = decoder.step(np.array([4]), cache)
      >>> models.logits(*decoder, hidden_BD).shape, int(cache["length"])
      ((1, 256), 4)
    """

    def __init__(self, config: models.ModelConfig, params: dict):
        laid_out = isinstance(params, dict) and isinstance(params.get("layers"), tuple)
        if not laid_out:
            models.check_params(config, params)
        self.config = config
        self.params = models.for_decoding(config, params)

    def __iter__(self) -> Iterator[Any]:
        yield self.config
        yield self.params

    def prefill(self, tokens_BT: jax.Array, mask_BT: jax.Array | None = None, *, slots: int):
        """Run prompts; return (hidden states of their last tokens [B, D], cache).

        Args:
          tokens_BT: int32 [B, T].
          mask_BT: False at padding, which must be on the left; None: there is none.
          slots: tokens that a row of the cache holds, prompts included.

        Raises:
          UserError: no tokens, or more than slots.
        """
        tokens_BT = np.asarray(tokens_BT, np.int32)
        if tokens_BT.size == 0:
            raise UserError(f"prompts of shape {tokens_BT.shape} hold no token; give at least one a row")
        if tokens_BT.shape[1] > slots:
            raise UserError(f"prompts of {tokens_BT.shape[1]} tokens do not fit a cache of {slots} slots")
        mask_BT = np.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
        return _read(self.config, self.params, tokens_BT, mask_BT, slots=slots)

    def step(self, tokens_B: jax.Array, cache: dict):
        """Run one more token a row; return (its hidden state [B, D], cache).

        The cache that was given is used up. One that is full has no place for the token: NaN.
        """
        return _step(self.config, self.params, tokens_B, cache)


def read(config, params, tokens_BT, mask_BT, *, slots):
    """Return (last tokens' hidden states [B, D], cache of so many slots), read from the first position on."""
    cache = models.init_cache(config, len(tokens_BT), slots, apart=isinstance(params["layers"], tuple))
    hidden_BTD, cache = models.decode(config, params, tokens_BT, cache, mask_BT=mask_BT)
    return hidden_BTD[:, -1], cache


_read = jax.jit(read, static_argnames=("config", "slots"))


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _step(config, params, tokens_B, cache):
    hidden_B1D, cache = models.decode(config, params, tokens_B[:, None], cache)
    return hidden_B1D[:, 0], cache
