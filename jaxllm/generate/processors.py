"""Logits processors: functions that change the scores of the next token, plain or with a state."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import Config, CountOrZero, Range

# processor(logits_BV float32, tokens_BS int32, seen_BS bool) -> logits_BV; `seen` marks which slots
# of `tokens` hold a token of the prompt or an earlier draw.
Processor = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class StatefulProcessor(NamedTuple):
    """A processor that remembers something, or has arrays of its own; see `jaxllm.generate.stateful`.

    Weights and states are arguments of the compiled program, so that others of the same shapes do not compile
    it anew. `update` is a part of it, and of a beam search `select` too: pass the same function objects each
    time, or some that compare equal.

    Examples:
      >>> def update(logits_BV, tokens_BS, seen_BS, weights, state):  # forbids a token at every second draw
      ...     return logits_BV.at[:, weights].add(jnp.where(state % 2, -jnp.inf, 0.0)), state + 1
      >>> forbid = StatefulProcessor(jnp.int32(7), lambda prompts: jnp.int32(0), update)
    """

    weights: Any  # arrays that stay as they are, for any number of prompts: a second model, a table
    init: Callable[[Any], Any]  # prompts (jaxllm.generate.prompts.Prompts) -> the state before the first draw
    update: Callable  # (logits_BV, tokens_BS, seen_BS, weights, state) -> (logits_BV, the next state)
    # (state, rows) -> the state of some rows; None: rows that have ended are computed on.
    select: Callable[[Any, Any], Any] | None = None

# Logits divided by less than this could overflow.
Temperature = Annotated[float, Range(1e-6, or_value=0)]
_Penalty = Annotated[float, Range(1e-6, 1e6)]
_TopP = Annotated[float, Range(above=0, most=1)]
_MinP = Annotated[float, Range(0, below=1)]


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How the next token is drawn. Applied in the order of the fields, as in transformers."""

    repetition_penalty: _Penalty = 1.0  # > 1 makes seen tokens less likely (CTRL, arXiv 1909.05858)
    temperature: Temperature = 1.0  # 0: greedy
    top_k: CountOrZero = 0  # keep the k likeliest; 0: all
    top_p: _TopP = 1.0  # keep the likeliest that together reach p (nucleus, arXiv 1904.09751)
    min_p: _MinP = 0.0  # keep what has at least min_p of the likeliest's probability

    def processors(self) -> tuple[Processor, ...]:
        """Return the processors that these values ask for."""
        chain = []
        if self.repetition_penalty != 1:
            chain.append(penalize_repetition(self.repetition_penalty))
        if self.temperature not in (0, 1):
            chain.append(scale_temperature(self.temperature))
        if self.top_k and self.temperature:
            chain.append(keep_top_k(self.top_k))
        if self.top_p < 1 and self.temperature:
            chain.append(keep_top_p(self.top_p))
        if self.min_p and self.temperature:
            chain.append(keep_min_p(self.min_p))
        return tuple(chain)


def with_state(processor: Processor | StatefulProcessor) -> StatefulProcessor:
    """Return a plain function as a processor with neither weights nor state."""
    if isinstance(processor, StatefulProcessor):
        return processor
    return StatefulProcessor(None, _nothing, _Plain(processor), _nothing)


def _nothing(*_):
    return None


@dataclass(frozen=True)
class _Plain:
    process: Processor

    def __call__(self, logits_BV, tokens_BS, seen_BS, weights, state):
        return self.process(logits_BV, tokens_BS, seen_BS), state


def last_token(tokens_BS, seen_BS) -> jax.Array:
    """Return the last token of each row, [B]: all rows have it in the same slot."""
    from_end = jnp.argmax(seen_BS[0, ::-1])
    return jax.lax.dynamic_index_in_dim(tokens_BS, tokens_BS.shape[1] - 1 - from_end, axis=1, keepdims=False)


def penalize_repetition(penalty: float) -> Processor:
    """Divide positive scores of seen tokens by `penalty` and multiply negative ones by it."""

    def process(logits_BV, tokens_BS, seen_BS):
        rows = jnp.arange(logits_BV.shape[0], dtype=jnp.int32)[:, None]
        counts_BV = jnp.zeros(logits_BV.shape, jnp.int32).at[rows, tokens_BS].max(seen_BS.astype(jnp.int32))
        penalized = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        return jnp.where(counts_BV > 0, penalized, logits_BV)

    return process


def scale_temperature(temperature: float) -> Processor:
    """Divide the scores by `temperature`."""
    return lambda logits_BV, tokens_BS, seen_BS: logits_BV / temperature


def keep_top_k(k: int) -> Processor:
    """Keep the k highest scores and what ties with the k-th.

    Examples:
      >>> keep_top_k(2)(jnp.array([[3.0, 1.0, 2.0]]), None, None)
      Array([[  3., -inf,   2.]], dtype=float32)
    """

    def process(logits_BV, tokens_BS, seen_BS):
        kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[1]))[0][:, -1:]
        return jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)

    return process


@functools.cache  # the same function for the same number, which compiles once
def keep_top_p(p: float) -> Processor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p.

    Examples:
      >>> keep_top_p(0.7)(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), None, None).round(1)
      Array([[-0.7, -1.2, -inf]], dtype=float32)
    """

    def process(logits_BV, tokens_BS, seen_BS):
        sorted_BV = jnp.sort(logits_BV, axis=-1)[:, ::-1]
        probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # the likeliest has 0 before it: kept
        last_B1 = jnp.min(jnp.where(before_BV < p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits_BV >= last_B1, logits_BV, -jnp.inf)

    return process


@functools.cache  # the same function for the same number, which compiles once
def keep_min_p(p: float) -> Processor:
    """Keep the tokens at least p times as likely as the likeliest (arXiv 2407.01082)."""

    def process(logits_BV, tokens_BS, seen_BS):
        top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
        return jnp.where(logits_BV >= top_B1 + jnp.log(p), logits_BV, -jnp.inf)

    return process
