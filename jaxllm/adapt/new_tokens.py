"""Tokens added to a pretrained vocabulary, such as a tag that begins every text of a kind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.adapt.names import flat, nested
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.errors import UserError, brief
from jaxllm.models import LanguageModel, axes


def add_tokens(
    config: LanguageModel, params: dict, tokenizer: HuggingFaceTokenizer, tokens: Sequence[str]
) -> tuple[LanguageModel, dict, HuggingFaceTokenizer]:
    """Return the model and its tokenizer with more tokens, each one id wherever it stands in a text.

    A new row of whatever has the vocabulary as an axis is the mean of the old rows: so a new token is as
    likely, at first, as an average one. Other ids and rows stay as they are.

    Args:
      config: the model.
      params: its parameters, layers stacked.
      tokenizer: of a tokenizer.json.
      tokens: their texts, none of which the tokenizer has.

    Raises:
      UserError: a token that is there already, is empty or twice; a tokenizer or a head that cannot grow.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError(
            f"a {type(tokenizer).__name__} cannot take new tokens; give one of a tokenizer.json, or bpe:N"
        )
    if config.vocab_groups is not None:
        raise UserError("a head of groups has one for each token; add tokens before the head is grouped")
    known = tokenizer.backend.get_vocab(with_added_tokens=True)
    for token in tokens:
        if not token.strip() or token in known or list(tokens).count(token) > 1:
            raise UserError(
                f"{brief(token)} cannot be added: it is empty, there already, or given twice; choose "
                "another text"
            )
    old, size = tokenizer.vocab_size, tokenizer.vocab_size + len(tokens)
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(list(tokens))
    if [backend.token_to_id(token) for token in tokens] != list(range(old, size)):
        raise UserError("the tokenizer's ids have a gap, in which new tokens would lie; give one without")
    grown = dataclasses.replace(config, vocab_size=max(config.vocab_size, size))
    names = flat(axes(config))
    weights = {path: _grown(x, names[path], old, size) for path, x in flat(params).items()}
    return grown, nested(weights), dataclasses.replace(tokenizer, backend=backend)


def _grown(x: jax.Array, names: Any, old: int, size: int) -> jax.Array:
    """Put the mean of rows 0 to `old` at the rows `old` to `size` of the vocabulary's axis."""
    if "vocab" not in names:
        return x
    at = tuple(names).index("vocab")
    rows = jnp.moveaxis(x, at, 0)
    mean = rows[:old].astype(jnp.float32).mean(axis=0).astype(x.dtype)
    new = jnp.broadcast_to(mean, (size - old, *mean.shape))
    return jnp.moveaxis(jnp.concatenate([rows[:old], new, rows[size:]]), 0, at)
