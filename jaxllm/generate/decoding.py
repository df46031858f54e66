"""Batched decoding with a key-value cache, a few tokens a call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.processors import Processor, SamplingConfig

_BUCKET = 32  # prompts are padded to a multiple of this, so that few lengths are ever compiled


@dataclass(frozen=True)
class Generation:
    """What was drawn for each prompt."""

    tokens: list[list[int]]  # without the prompt, up to and without the end-of-text token
    log_probs: list[list[float]]  # of each token under the model, before any processor


def generate(config: models.ModelConfig, params, prompts: Sequence[Sequence[int]], **options) -> Generation:
    """Continue prompts of any lengths; options are those of `stream`.

    Examples:
      >>> config = models.get_preset("gpt2-nano", vocab_size=256)
      >>> params = models.init(config, jax.random.key(0))
      >>> drawn = generate(config, params, [[1, 2, 3], [4]], max_new_tokens=5)
      >>> [len(row) for row in drawn.tokens]
      [5, 5]
    """
    eos_id = options.get("eos_id")
    pieces = list(stream(config, params, prompts, **options))
    tokens = np.concatenate([t for t, _ in pieces], axis=1)
    log_probs = np.concatenate([p for _, p in pieces], axis=1)
    lengths = [row.tolist().index(eos_id) if eos_id in row.tolist() else len(row) for row in tokens]
    return Generation(
        [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)],
        [row[:n].tolist() for row, n in zip(log_probs, lengths, strict=True)],
    )


def stream(
    config: models.ModelConfig,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),
    processors: tuple[Processor, ...] = (),
    eos_id: int | None = None,
    key: jax.Array | None = None,
    tokens_per_call: int = 16,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (tokens [B, n], log-probabilities [B, n]) as they are drawn.

    Rows that have drawn `eos_id` repeat it; when all have, the stream ends.

    Args:
      config: the model.
      params: its parameters.
      prompts: token ids, at least one a row.
      max_new_tokens: how many to draw at most.
      sampling: how to draw.
      processors: more logits processors, run before those of `sampling`. Pass the same function
        objects each time: a new one compiles anew.
      eos_id: ends a row; None never does.
      key: typed random key; None is `jax.random.key(0)`.
      tokens_per_call: drawn on the device before the host looks at them.

    Raises:
      UserError: an empty prompt, ids beyond the vocabulary, or more tokens than the model's context.
    """
    longest = _check(config, prompts, max_new_tokens)
    padded = -(-longest // _BUCKET) * _BUCKET
    if config.position == "learned":
        padded = min(padded, config.context_length)
    calls = -(-max_new_tokens // tokens_per_call)
    tokens_BT = np.zeros((len(prompts), padded), np.int32)
    mask_BT = np.zeros((len(prompts), padded), bool)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, padded - len(prompt) :] = prompt
        mask_BT[row, padded - len(prompt) :] = True
    slots = padded + calls * tokens_per_call
    params = models.for_decoding(config, params)
    state = _prefill(config, params, tokens_BT, mask_BT, slots=slots)
    key = jax.random.key(0) if key is None else key
    done_B, left = np.zeros(len(prompts), bool), max_new_tokens
    for call in range(calls):
        state, tokens, log_probs = _draw(
            config, params, state, jax.random.fold_in(key, call), count=tokens_per_call,
            sampling=sampling, processors=processors, eos_id=eos_id,
        )  # fmt: skip
        tokens, log_probs = np.asarray(tokens)[:, :left], np.asarray(log_probs)[:, :left]
        left -= tokens.shape[1]
        yield tokens, log_probs
        done_B |= (tokens == eos_id).any(axis=1)
        if done_B.all():
            return


@partial(jax.jit, static_argnames=("config", "slots"))
def _prefill(config, params, tokens_BT, mask_BT, *, slots):
    """Run the prompts; return what `_draw` carries."""
    B, T = tokens_BT.shape
    cache = models.init_cache(config, B, slots, apart=isinstance(params["layers"], tuple))
    hidden_BTD, cache = models.decode(config, params, tokens_BT, cache, mask_BT=mask_BT)
    return {
        "cache": cache,
        "hidden": hidden_BTD[:, -1],
        "tokens": jnp.pad(tokens_BT, ((0, 0), (0, slots - T))),
        "done": jnp.zeros(B, bool),
    }


@partial(
    jax.jit,
    static_argnames=("config", "count", "sampling", "processors", "eos_id"),
    donate_argnames=("state",),
)
def _draw(config, params, state, key, *, count, sampling, processors, eos_id):
    """Draw `count` tokens a row; return (state, tokens [B, count], log-probabilities [B, count])."""

    change = (*processors, *sampling.processors())
    by_group = config.vocab_groups is not None and not change and sampling.temperature == 1

    def one(state, key):
        cache = state["cache"]
        if by_group:  # the same distribution, without a logit for every token
            drawn_B, log_probs_B = models.draw_token(config, params, state["hidden"], key)
        else:
            logits_BV = models.logits(config, params, state["hidden"])
            scores_BV = logits_BV
            for process in change:
                scores_BV = process(scores_BV, state["tokens"], cache["valid"])
            if sampling.temperature == 0:
                drawn_B = jnp.argmax(scores_BV, axis=-1)
            else:
                drawn_B = jax.random.categorical(key, scores_BV)
            log_probs_BV = jax.nn.log_softmax(logits_BV)
            log_probs_B = jnp.take_along_axis(log_probs_BV, drawn_B[:, None], axis=1)[:, 0]
        drawn_B = drawn_B.astype(jnp.int32)
        done_B = state["done"]
        if eos_id is not None:
            drawn_B = jnp.where(done_B, eos_id, drawn_B)
            done_B = done_B | (drawn_B == eos_id)
        tokens_BS = jax.lax.dynamic_update_slice(state["tokens"], drawn_B[:, None], (0, cache["length"]))
        hidden_B1D, cache = models.decode(config, params, drawn_B[:, None], cache)
        state = {
            "cache": cache,
            "hidden": hidden_B1D[:, 0],
            "tokens": tokens_BS,
            "done": done_B,
        }
        return state, (drawn_B, log_probs_B)

    state, (tokens, log_probs) = jax.lax.scan(one, state, jax.random.split(key, count))
    return state, tokens.T, log_probs.T


def _check(config, prompts, max_new_tokens):
    if not prompts or not all(len(p) for p in prompts):
        raise UserError("a prompt is empty; give at least one token (the end-of-text token will do)")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    highest = max(max(p) for p in prompts)
    if highest >= config.vocab_size:
        raise UserError(
            f"the prompt holds id {highest}, beyond the vocabulary of {config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )
    longest = max(len(p) for p in prompts)
    if config.position == "learned" and longest + max_new_tokens > config.context_length:
        raise UserError(
            f"{longest} prompt tokens + {max_new_tokens} new ones exceed the model's context of "
            f"{config.context_length}; shorten the prompt or ask for fewer tokens"
        )
    return longest
