"""Processors with a state: a temperature a row, an automaton."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.generate.processors import StatefulProcessor, last_token


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

    return StatefulProcessor(None, init, _divide, _rows_of_temperatures)


def _rows_of_temperatures(temperature_B, rows):
    return temperature_B[rows]


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

    return StatefulProcessor(jnp.asarray(next_XV, jnp.int32), init, _follow, _rows_of_states)


def _rows_of_states(state, rows):
    return state[0][rows], state[1]


def _follow(logits_BV, tokens_BS, seen_BS, next_XV, state):
    if next_XV.shape[1] != logits_BV.shape[1]:
        raise UserError(
            f"the automaton's table has {next_XV.shape[1]} tokens and the model {logits_BV.shape[1]}; "
            "make a column for each token of the vocabulary"
        )
    state_B, is_first = state
    state_B = jnp.where(is_first, state_B, next_XV[state_B, last_token(tokens_BS, seen_BS)])
    state_B = jnp.maximum(state_B, 0)  # of rows that have ended
    return jnp.where(next_XV[state_B] >= 0, logits_BV, -jnp.inf), (state_B, jnp.array(False))
