"""A model prepared to decode."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.short_repr import holding


class Decoder:
    """A model with its weights laid out for decoding, once, for any number of calls.

    It unpacks as (config, params), so it goes wherever a model does: `generate(*decoder, prompts)`,
    `models.logits(*decoder, hidden)`. The parameters it was made from are not needed any more.

    A cache is what the model remembers of the rows of a batch: a pytree, made by `prefill` or `fork`, and
    used up by `step` and `extend`, which return the next one. A step of a fork only reads what it shares, as
    of an encoder-decoder its context; a step of the cache that was forked uses that up, and its forks too.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> decoder = Decoder(config, models.init(config, jax.random.key(0)))
      >>> hidden_BD, cache = decoder.prefill(np.array([[1, 2, 3]]), slots=3)
      >>> cache = decoder.fork(cache, [0, 0], slots=5)  # two continuations of one prompt
      >>> hidden_BD, cache = decoder.step(np.array([4, 5]), cache)
      >>> models.logits(*decoder, hidden_BD).shape
      (2, 256)
      >>> hidden_BD, cache = decoder.step(np.array([6]), decoder.cancel(cache, [0]))  # the second goes on
      >>> hidden_BD.shape
      (1, 64)
    """

    def __init__(self, config: models.LanguageModel, params: dict):
        if not models.is_apart(params):
            models.check_params(config, params)
        self.config = config
        self.params = models.for_decoding(config, params)

    def __repr__(self) -> str:
        return f"Decoder({self.config!r}, {holding(self.params)})"

    def __iter__(self) -> Iterator[Any]:
        yield self.config
        yield self.params

    def prefill(self, tokens_BT: jax.Array, mask_BT: jax.Array | None = None, *, slots: int):
        """Run prompts; return (hidden states of their last tokens [B, D], cache).

        An encoder-decoder's prompts are sources, and what it returns is of its answer's first token.

        Args:
          tokens_BT: int32 [B, T].
          mask_BT: False at padding, which must be on the left; None: there is none.
          slots: tokens that a row of the cache holds, prompts included; sources are not.

        Raises:
          UserError: no tokens, or more than slots or a learned position table has; ids that the model
            does not know; rows that differ in length.
        """
        tokens_BT = _prompts(tokens_BT, self.config)
        if tokens_BT.shape[1] > slots and self.config.start_id is None:
            raise UserError(
                f"prompts of {tokens_BT.shape[1]} tokens do not fit a cache of {slots} slots; "
                f"make slots {tokens_BT.shape[1]} at least"
            )
        mask_BT = np.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
        models.check_length(self.config, int(np.sum(mask_BT, axis=1).max()))
        return _prefill(self.config, self.params, tokens_BT, mask_BT, slots=slots)

    def fork(self, cache: dict, rows: Any, *, slots: int) -> dict:
        """Return a cache whose rows continue rows of this one, which they share: it is held and read once.

        The cache that was given stays good, to be forked again. A fork may be forked too. To go on with the
        cache beside its forks, step a fork of it, which shares the prompt too.

        Args:
          cache: of a few prompts.
          rows: which of them each new row continues: [0] * 32 makes 32 continuations of the first.
          slots: how many more tokens each may take.

        Raises:
          UserError: no rows, or one that the cache does not have.
        """
        return models.fork_cache(cache, _rows(rows, cache), slots)

    def step(self, tokens_B: jax.Array, cache: dict):
        """Run one more token a row; return (its hidden state [B, D], cache).

        The cache that was given is used up. One that is full has no place for the token, and a table of
        positions may have no more of them: NaN.

        Raises:
          UserError: not one token for each row of the cache, or a cache that was used up.
        """
        given, B = np.shape(tokens_B), models.cache_rows(cache)
        if given != (B,):
            raise UserError(f"tokens are of shape {given} and the cache has {B} rows; give one token a row")
        hidden_B1D, cache = self.extend(tokens_B[:, None], cache)
        return hidden_B1D[:, 0], cache

    def extend(self, tokens_BT: jax.Array, cache: dict, mask_BT: jax.Array | None = None):
        """Run T more tokens a row; return (their hidden states [B, T, D], cache).

        The cache that was given is used up. One that has no place for the tokens gives NaN, as do tokens
        that have no position. Those that pad the right of a row do no harm if nothing comes after them.

        Args:
          tokens_BT: int32 [B, T].
          cache: from `prefill`, `fork`, or the last call.
          mask_BT: False at padding on the left of a row's tokens; None: there is none.

        Raises:
          UserError: a cache that was used up, or forked from one that was.
        """
        if any(_is_used_up(x) for x in jax.tree.leaves(cache)):
            raise UserError(
                "the cache was used up by a step of it, or of the cache that it was forked from; go on with "
                "what that step returned, and beside forks step a fork, not the cache that was forked"
            )
        read = {name: value for name, value in cache.items() if name in ("shared", "context")}
        own = {name: value for name, value in cache.items() if name not in read}
        hidden_BTD, own = _extend(self.config, self.params, tokens_BT, own, read, mask_BT)
        return hidden_BTD, own | read

    def rewind(self, cache: dict, length: int) -> dict:
        """Return the cache with only its first slots: what follows is forgotten; a fork's prompt stays.

        The cache that was given is used up. Padding on the right of the last tokens goes so, too.

        Raises:
          UserError: a recurrent state, which cannot go back, or a length beyond the cache's slots.
        """
        if "valid" not in cache or "state" in cache:
            raise UserError("a recurrent state cannot be rewound; prefill again")
        slots = cache["valid"].shape[1]
        if not 0 <= length <= slots:
            raise UserError(f"length is {length} and the cache has {slots} slots; rewind to one of them")
        return models.rewind_cache(cache, length)

    def cancel(self, cache: dict, rows: Any) -> dict:
        """Return the cache without some rows; the others move up, in their order.

        A batch of another size is another program, compiled once: cancel down to a few sizes, such as
        powers of two.

        Raises:
          UserError: a row that the cache does not have, or all of them.
        """
        B = models.cache_rows(cache)
        dropped = set(_rows(rows, cache).tolist())
        if len(dropped) == B:
            raise UserError(f"all {B} rows would be cancelled; drop the cache instead")
        return models.select_rows(cache, [row for row in range(B) if row not in dropped])


def _prompts(tokens_BT, config) -> np.ndarray:
    try:
        tokens_BT = np.asarray(tokens_BT)
    except ValueError as error:  # NumPy's word for it is "inhomogeneous"
        raise UserError(
            "prompts differ in length; pad them on the left to one length, with mask_BT False at the padding"
        ) from error
    if tokens_BT.size == 0:
        raise UserError(f"prompts of shape {tokens_BT.shape} hold no token; give at least one a row")
    if tokens_BT.ndim != 2:
        raise UserError(f"prompts are of shape {tokens_BT.shape}; expected [B, T], a row of ids each")
    models.check_ids(tokens_BT, config.known_vocab_size, "prompts")
    return tokens_BT.astype(np.int32)


def _rows(rows, cache) -> np.ndarray:
    rows_B, count = np.asarray(rows), models.cache_rows(cache)
    if rows_B.ndim != 1 or rows_B.size == 0 or rows_B.dtype.kind not in "iu":
        raise UserError(f"rows are {rows!r}; give a list of numbers of rows, at least one")
    if rows_B.min() < 0 or rows_B.max() >= count:
        wrong = rows_B.min() if rows_B.min() < 0 else rows_B.max()
        raise UserError(f"row {wrong} is not in the cache; it has rows 0 to {count - 1}")
    return rows_B


def _is_used_up(x) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_deleted()


_prefill = jax.jit(models.prefill, static_argnames=("config", "slots"))


@partial(jax.jit, static_argnames="config", donate_argnames="own")
def _extend(config, params, tokens_BT, own, read, mask_BT):
    hidden_BTD, cache = models.decode(config, params, tokens_BT, own | read, mask_BT=mask_BT)
    return hidden_BTD, {name: cache[name] for name in own}
