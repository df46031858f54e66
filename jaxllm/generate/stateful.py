"""Processors with a state: a second model, a temperature a row, an automaton."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder
from jaxllm.generate.processors import StatefulProcessor


def combine_models(
    decoder: Decoder, combine: Callable[[jax.Array, jax.Array], jax.Array]
) -> StatefulProcessor:
    """Combine the scores with those of a second model, which reads the same prompts and draws.

    Contrastive decoding (arXiv 2210.15097), proxy tuning and EXPOSED are such combinations. The second
    model's weights and cache are arguments of the compiled program, whichever decoder they come from.

    Args:
      decoder: the second model, of the same vocabulary.
      combine: (scores [B, V], the second model's logits [B, V]) -> scores; pass the same function each time.

    Examples:
      >>> def contrast(expert_BV, amateur_BV):
      ...     return 1.5 * expert_BV - 0.5 * amateur_BV
      >>> config = models.get_preset("gpt2-nano")
      >>> amateur = Decoder(config, models.init(config, jax.random.key(1)))
      >>> processor = combine_models(amateur, contrast)
    """
    config = decoder.config

    def init(prompts):
        longest = prompts.mask_PT.sum(axis=1).max() + prompts.room
        if longest > config.most_cached:
            raise UserError(
                f"the second model's context holds {config.most_cached} tokens, not the {longest} of a "
                "prompt and what is drawn; shorten the prompt or max_new_tokens"
            )
        try:
            models.check_ids(prompts.tokens_PT, config.known_vocab_size, "a prompt's ids")
        except UserError as error:
            raise UserError(f"{error}: those of the second model; both must share a tokenizer") from error
        return prompts.without_last().read(decoder)[1]

    return StatefulProcessor(decoder.params, init, _SecondModel(config, combine), models.select_rows)


@dataclass(frozen=True)
class _SecondModel:
    config: models.LanguageModel
    combine: Callable

    def __call__(self, logits_BV, tokens_BS, seen_BS, params, cache):
        last_B1 = _last_token(tokens_BS, seen_BS)[:, None]
        hidden_B1D, cache = models.decode(self.config, params, last_B1, cache)
        other_BV = models.logits(self.config, params, hidden_B1D[:, 0])
        if other_BV.shape != logits_BV.shape:
            raise UserError(
                f"the models have vocabularies of {logits_BV.shape[1]} and {other_BV.shape[1]}; "
                "scores are combined token by token: give two models of one tokenizer"
            )
        return self.combine(logits_BV, other_BV), cache


def scale_each_row(temperatures: Sequence[float]) -> StatefulProcessor:
    """Divide the scores of each row by a temperature of its own.

    Examples:
      >>> processor = scale_each_row([0.5, 1.0, 2.0])  # for three prompts
    """
    temperatures_B = np.asarray(temperatures, np.float32)
    if temperatures_B.ndim != 1 or not (temperatures_B >= 1e-6).all():
        raise UserError(f"temperatures are {temperatures!r}; give a list of numbers of 1e-6 at least")

    def init(prompts):
        if len(temperatures_B) != len(prompts.rows_B):
            given, rows = len(temperatures_B), len(prompts.rows_B)
            raise UserError(f"{given} temperatures for {rows} rows; give one a row")
        return jnp.asarray(temperatures_B)

    return StatefulProcessor(None, init, _divide, lambda state_B, rows: state_B[rows])


def _divide(logits_BV, tokens_BS, seen_BS, weights, temperature_B):
    return logits_BV / temperature_B[:, None], temperature_B


def follow_automaton(next_XV: np.ndarray, start: int = 0) -> StatefulProcessor:
    """Draw only what a deterministic finite automaton over tokens accepts.

    Args:
      next_XV: int, the state that each token leads to from each of X states; -1: the token is not allowed.
      start: the state before the first draw.

    Raises:
      UserError: a state that there is not, or one without a way on (let it allow an end-of-text token).

    Examples:
      >>> even = np.full((2, 256), -1)
      >>> even[0, 97], even[1, 98] = 1, 0  # a, b, a, b, ...
      >>> processor = follow_automaton(even)
    """
    next_XV = np.asarray(next_XV)
    if next_XV.ndim != 2 or not 0 <= start < len(next_XV):
        raise UserError(
            f"a table of shape {next_XV.shape} has no state {start}; its rows are states, its columns tokens"
        )
    if (last := next_XV.max()) >= len(next_XV):
        raise UserError(f"a token leads to state {last}; the table has states 0 to {len(next_XV) - 1}")
    stuck = np.flatnonzero((next_XV < 0).all(axis=1))
    if stuck.size:
        raise UserError(
            f"state {stuck[0]} allows no token; let it allow an end-of-text token, and pass that as eos_id"
        )

    def init(prompts):
        return jnp.full(len(prompts.rows_B), start, jnp.int32), jnp.array(True)

    def select(state, rows):
        return state[0][rows], state[1]

    return StatefulProcessor(jnp.asarray(next_XV, jnp.int32), init, _follow, select)


def _follow(logits_BV, tokens_BS, seen_BS, next_XV, state):
    if next_XV.shape[1] != logits_BV.shape[1]:
        raise UserError(
            f"the automaton's table has {next_XV.shape[1]} tokens and the model {logits_BV.shape[1]}; "
            "make a column for each token of the vocabulary"
        )
    state_B, is_first = state
    state_B = jnp.where(is_first, state_B, next_XV[state_B, _last_token(tokens_BS, seen_BS)])
    state_B = jnp.maximum(state_B, 0)  # of rows that have ended
    return jnp.where(next_XV[state_B] >= 0, logits_BV, -jnp.inf), (state_B, jnp.array(False))


def _last_token(tokens_BS, seen_BS) -> jax.Array:
    """Return the last token of each row, [B]: all rows have it in the same slot."""
    from_end = jnp.argmax(seen_BS[0, ::-1])
    return jax.lax.dynamic_index_in_dim(tokens_BS, tokens_BS.shape[1] - 1 - from_end, axis=1, keepdims=False)
