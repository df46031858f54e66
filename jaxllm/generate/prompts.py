"""Prompts as arrays, each read once however many rows continue it."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder

_BUCKET = 32  # prompts are padded to a multiple of this, so that few lengths are ever compiled


class Prompts(NamedTuple):
    """P prompts that B rows continue, or sources that they answer."""

    tokens_PT: np.ndarray  # int32, padded on the left
    mask_PT: np.ndarray  # False at padding
    rows_B: np.ndarray  # which of them each row continues
    new: int  # how many tokens each row draws at most
    room: int  # how many it may take, those that nobody will see included
    start_id: int | None = None  # what an answer to a source begins with; None: prompts are continued

    @classmethod
    def pack(
        cls, prompts: Sequence[Sequence[int]], context: int, new: int, room: int, start_id: int | None = None
    ) -> "Prompts":
        """Return prompts of any lengths as arrays: the last `context` tokens of each.

        Equal prompts are one where each is there equally often; otherwise every mixture of repeats would be a
        program of its own.
        """
        several = [tuple(np.asarray(prompt[-context:]).tolist()) for prompt in prompts]
        number = {prompt: place for place, prompt in enumerate(dict.fromkeys(several))}
        rows_B = np.array([number[prompt] for prompt in several])
        if len(set(np.bincount(rows_B).tolist())) > 1:
            number, rows_B = several, np.arange(len(several))
        padded = min(-(-max(map(len, several)) // _BUCKET) * _BUCKET, context)
        return cls(*_padded(list(number), padded), rows_B, new, room, start_id)

    def read(self, decoder: Decoder) -> tuple[Any, dict]:
        """Return (the last tokens' hidden states [B, D], a cache); rows that continue one prompt share it."""
        padded = self.tokens_PT.shape[1] if self.start_id is None else 1
        if len(self.rows_B) == len(self.tokens_PT):
            return decoder.prefill(self.tokens_PT, self.mask_PT, slots=padded + self.room)
        hidden_PD, cache = decoder.prefill(self.tokens_PT, self.mask_PT, slots=padded)
        return hidden_PD[self.rows_B], decoder.fork(cache, self.rows_B, slots=self.room)

    def begun(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens, where they are no padding) that each row goes on from, [B, T]."""
        if self.start_id is None:
            return self.tokens_PT[self.rows_B], self.mask_PT[self.rows_B]
        shape = (len(self.rows_B), 1)
        return np.full(shape, self.start_id, np.int32), np.ones(shape, bool)

    def without_last(self) -> "Prompts":
        """Return the prompts without their last tokens; sources, after which none has come, as they are."""
        cut = slice(None, -1 if self.start_id is None else None)
        tokens_PT, mask_PT = self.tokens_PT[:, cut], self.mask_PT[:, cut]
        return self._replace(tokens_PT=tokens_PT, mask_PT=mask_PT, room=self.room + 1)

    def read_before(self, decoder: Decoder) -> dict:
        """Return a cache of prompts `without_last`: of sources, before any token is decoded."""
        if self.start_id is None:
            return self.read(decoder)[1]
        cache = _source_cache(*decoder, self.tokens_PT, self.mask_PT, slots=self.room)
        return models.select_rows(cache, self.rows_B)

    def after(self, prefixes: Sequence[Sequence[int]]) -> "Prompts":
        """Return the prompts after each of some prefixes: all rows after the first one, and so on."""
        if not any(map(len, prefixes)) and len(prefixes) == 1:
            return self
        rows = [
            [*prefix, *tokens_T[mask_T]]
            for prefix in prefixes
            for tokens_T, mask_T in zip(self.tokens_PT, self.mask_PT, strict=True)
        ]
        padded = -(-max(map(len, rows)) // _BUCKET) * _BUCKET
        tokens_PT, mask_PT = _padded(rows, padded)
        P = len(self.tokens_PT)
        rows_B = np.concatenate([self.rows_B + number * P for number in range(len(prefixes))])
        return self._replace(tokens_PT=tokens_PT, mask_PT=mask_PT, rows_B=rows_B)


@partial(jax.jit, static_argnames=("config", "slots"))
def _source_cache(config, params, tokens_PT, mask_PT, *, slots):
    context = models.encode(config, params, tokens_PT, mask_PT)
    return models.context_cache(config, params, context, slots)


def _padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens int32, mask), each [P, length], padded on the left."""
    tokens_PT = np.zeros((len(rows), length), np.int32)
    mask_PT = np.zeros(tokens_PT.shape, bool)
    for number, row in enumerate(rows):
        tokens_PT[number, length - len(row) :] = row
        mask_PT[number, length - len(row) :] = True
    return tokens_PT, mask_PT


def check_prompts(config: models.LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
    """Check that a model can continue prompts.

    Raises:
      UserError: none, an empty one, something else than lists of ids, or ids that the model does not know.
    """
    if not len(prompts):
        raise UserError("no prompt was given; give a list of prompts, each a list of token ids")
    if not all(np.ndim(prompt) == 1 for prompt in prompts):
        raise UserError("a prompt is not a list of token ids; generate takes a list of prompts")
    if not all(len(p) for p in prompts):
        raise UserError("a prompt is empty; give at least one token (the end-of-text token will do)")
    for prompt in prompts:
        try:
            models.check_ids(np.asarray(prompt), config.known_vocab_size, "a prompt's ids")
        except UserError as error:
            raise UserError(f"{error}; use the tokenizer the model was trained with") from error
