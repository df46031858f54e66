"""Batched decoding with a key-value cache, a few tokens a call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder, read
from jaxllm.generate.processors import Processor, SamplingConfig

_BUCKET = 32  # prompts are padded to a multiple of this, so that few lengths are ever compiled


@dataclass(frozen=True)
class Generation:
    """What was drawn for each prompt."""

    tokens: list[list[int]]  # without the prompt, up to and without the token that ended it
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
    ends = _ends(options.get("eos_id"))
    pieces = list(stream(config, params, prompts, **options))
    tokens = np.concatenate([t for t, _ in pieces], axis=1)
    log_probs = np.concatenate([p for _, p in pieces], axis=1)
    lengths = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in tokens.tolist()]
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
    eos_id: int | Sequence[int] | None = None,
    key: jax.Array | None = None,
    tokens_per_call: int = 16,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (tokens [B, n], log-probabilities [B, n]) as they are drawn.

    The model sees the last `context_length` tokens: a longer prompt is cut on the left, and past the
    context each token is drawn from the last window, read again from its first position (which a cache
    cannot do: every position has moved), as nanoGPT does.

    Rows that have ended repeat the token that ended them; when all have, the stream ends.

    Args:
      config: the model.
      params: its parameters. To lay them out once for many calls, make a `Decoder` and pass `*decoder`.
      prompts: token ids, at least one a row.
      max_new_tokens: how many to draw at most.
      sampling: how to draw.
      processors: more logits processors, run before those of `sampling`. Pass the same function
        objects each time: a new one compiles anew.
      eos_id: each of these ids ends a row; None never does.
      key: typed random key; None is `jax.random.key(0)`.
      tokens_per_call: drawn on the device before the host looks at them.

    Raises:
      UserError: an empty prompt, or ids that the vocabulary does not have.
    """
    _check(config, prompts, max_new_tokens)
    context, ends = config.context_length, _ends(eos_id)
    prompts = [prompt[-context:] for prompt in prompts]
    longest = max(len(prompt) for prompt in prompts)
    padded = min(-(-longest // _BUCKET) * _BUCKET, context)
    calls = -(-max_new_tokens // tokens_per_call)
    # A token is drawn after at most `context` others. A call that would draw past that reads windows.
    cached = min(calls, (context + 1 - longest) // tokens_per_call)
    if context + 1 - longest >= max_new_tokens:
        cached = calls
    tokens_BT = np.zeros((len(prompts), padded), np.int32)
    mask_BT = np.zeros((len(prompts), padded), bool)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, padded - len(prompt) :] = prompt
        mask_BT[row, padded - len(prompt) :] = True
    decoder, slots = Decoder(config, params), padded + calls * tokens_per_call
    hidden_BD, cache = decoder.prefill(tokens_BT, mask_BT, slots=padded + cached * tokens_per_call)
    room = ((0, 0), (0, slots - padded))
    state = {
        "cache": cache,
        "hidden": hidden_BD,
        "tokens": np.pad(tokens_BT, room),  # [B, S]: padding, the prompt, what was drawn, free slots
        "valid": np.pad(mask_BT, room),
        "length": np.int32(padded),
        "done": np.zeros(len(prompts), bool),
    }
    key = jax.random.key(0) if key is None else key
    done_B, left = np.zeros(len(prompts), bool), max_new_tokens
    for call in range(calls):
        state, tokens, log_probs = _draw(
            *decoder, state | ({} if call < cached else {"cache": None}),
            jax.random.fold_in(key, call), count=tokens_per_call,
            sampling=sampling, processors=processors, ends=ends,
        )  # fmt: skip
        tokens, log_probs = np.asarray(tokens)[:, :left], np.asarray(log_probs)[:, :left]
        left -= tokens.shape[1]
        yield tokens, log_probs
        done_B |= np.isin(tokens, ends).any(axis=1)
        if done_B.all():
            return


@partial(
    jax.jit,
    static_argnames=("config", "count", "sampling", "processors", "ends"),
    donate_argnames=("state",),
)
def _draw(config, params, state, key, *, count, sampling, processors, ends):
    """Draw `count` tokens a row; return (state, tokens [B, count], log-probabilities [B, count]).

    Without a cache in the state, each token is drawn from the last window.
    """

    change = (*processors, *sampling.processors())
    by_group = config.vocab_groups is not None and not change and sampling.temperature == 1

    def one(state, key):
        tokens_BS, valid_BS, length = state["tokens"], state["valid"], state["length"]
        if by_group:  # the same distribution, without a logit for every token
            drawn_B, log_probs_B = models.draw_token(config, params, state["hidden"], key)
        else:
            logits_BV = models.logits(config, params, state["hidden"])
            scores_BV = logits_BV
            for process in change:
                scores_BV = process(scores_BV, tokens_BS, valid_BS)
            if sampling.temperature == 0:
                drawn_B = jnp.argmax(scores_BV, axis=-1)
            else:
                drawn_B = jax.random.categorical(key, scores_BV)
            log_probs_BV = jax.nn.log_softmax(logits_BV)
            log_probs_B = jnp.take_along_axis(log_probs_BV, drawn_B[:, None], axis=1)[:, 0]
        last_B1 = jax.lax.dynamic_slice_in_dim(tokens_BS, length - 1, 1, axis=1)
        drawn_B1 = jnp.where(state["done"][:, None], last_B1, drawn_B.astype(jnp.int32)[:, None])
        drawn_B = drawn_B1[:, 0]
        done_B = state["done"] | jnp.isin(drawn_B, jnp.array(ends, jnp.int32))
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(tokens_BS, drawn_B1, length, axis=1)
        valid_BS = jax.lax.dynamic_update_slice_in_dim(
            valid_BS, jnp.ones_like(drawn_B1, bool), length, axis=1
        )
        if state["cache"] is None:
            hidden_BD, cache = _read_window(config, params, tokens_BS, valid_BS, length + 1), None
        else:
            hidden_B1D, cache = models.decode(config, params, drawn_B1, state["cache"])
            hidden_BD = hidden_B1D[:, 0]
        state = {
            "cache": cache,
            "hidden": hidden_BD,
            "tokens": tokens_BS,
            "valid": valid_BS,
            "length": length + 1,
            "done": done_B,
        }
        return state, (drawn_B, log_probs_B)

    state, (tokens, log_probs) = jax.lax.scan(one, state, jax.random.split(key, count))
    return state, tokens.T, log_probs.T


def _read_window(config, params, tokens_BS, valid_BS, length):
    """Return the last token's hidden state [B, D] after the last `context_length` tokens alone."""
    W = min(config.context_length, tokens_BS.shape[1])
    # Free slots come around to the left, where padding is allowed.
    tokens_BW, valid_BW = (jnp.roll(x, -length, axis=1)[:, -W:] for x in (tokens_BS, valid_BS))
    return read(config, params, tokens_BW, valid_BW, slots=W)[0]


def _ends(eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
    return () if eos_id is None else tuple(np.atleast_1d(eos_id).tolist())


def _check(config, prompts, max_new_tokens):
    if not len(prompts):
        raise UserError("no prompt was given; give a list of prompts, each a list of token ids")
    if not all(np.ndim(prompt) == 1 for prompt in prompts):
        raise UserError("a prompt is not a list of token ids; generate takes a list of prompts")
    if not all(len(p) for p in prompts):
        raise UserError("a prompt is empty; give at least one token (the end-of-text token will do)")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    for prompt in prompts:
        try:
            models.check_ids(np.asarray(prompt), config.known_vocab_size, "a prompt's ids")
        except UserError as error:
            raise UserError(f"{error}; use the tokenizer the model was trained with") from error
