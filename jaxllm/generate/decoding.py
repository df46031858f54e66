"""Batched decoding with a key-value cache, a few tokens a call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder
from jaxllm.generate.draw import Carried, Drawn, draw, draws_by_group
from jaxllm.generate.processors import Processor, SamplingConfig, StatefulProcessor, with_state
from jaxllm.generate.prompts import Prompts, check_prompts

# Programs of `draw` that this process has compiled, as jit's cache has them: outline -> types of the arrays.
_PROGRAMS: dict[tuple, set] = {}


@dataclass(frozen=True)
class Generation:
    """What was drawn for each prompt."""

    tokens: list[list[int]]  # without the prompt, up to and without the token that ended it
    log_probs: list[list[float]]  # of each token under the model, before any processor
    sampled_log_probs: list[list[float]]  # under what it was drawn from, after temperature and processors


def generate(
    config: models.LanguageModel,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),
    processors: Sequence[Processor | StatefulProcessor] = (),
    eos_id: int | Sequence[int] | None = None,
    key: jax.Array | None = None,
    tokens_per_call: int = 16,
) -> Generation:
    """Continue prompts of any lengths; see `stream` for the arguments.

    A prompt that is there many times is read once, and held once: `[prompt] * 32` draws 32 continuations.

    Examples:
      >>> config = models.get_preset("gpt2-nano", vocab_size=256)
      >>> params = models.init(config, jax.random.key(0))
      >>> drawn = generate(config, params, [[1, 2, 3], [4]], max_new_tokens=5)
      >>> [len(row) for row in drawn.tokens]
      [5, 5]
    """
    pieces = stream(
        config, params, prompts, max_new_tokens=max_new_tokens, sampling=sampling, processors=processors,
        eos_id=eos_id, key=key, tokens_per_call=tokens_per_call,
    )  # fmt: skip
    drawn = Drawn(*(np.concatenate(arrays, axis=1) for arrays in zip(*pieces, strict=True)))
    lengths = [
        next((i for i, token in enumerate(row) if token in pieces.ends), len(row))
        for row in drawn.tokens.tolist()
    ]
    return Generation(*([row[:n].tolist() for row, n in zip(x, lengths, strict=True)] for x in drawn))


def stream(
    config: models.LanguageModel,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),
    processors: Sequence[Processor | StatefulProcessor] = (),
    eos_id: int | Sequence[int] | None = None,
    key: jax.Array | None = None,
    tokens_per_call: int = 16,
) -> "Stream":
    """Return an iterator over (tokens, log_probs, sampled_log_probs), each [B, n], as they are drawn.

    The model sees the last `context_length` tokens: a longer prompt is cut on the left, and past the
    context each token is drawn from the last window, read again from its first position (which a cache
    cannot do: every position has moved), as nanoGPT does.

    Rows that have ended repeat the token that ended them; when all have, the stream ends. What a row draws
    depends on its place among the prompts, never on the other rows.

    An encoder-decoder's prompts are sources: each row begins its answer with `config.start_id`.

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
      UserError: an empty prompt, ids that the vocabulary does not have, or what a processor refuses.
    """
    check_prompts(config, prompts)
    for name, count in (("max_new_tokens", max_new_tokens), ("tokens_per_call", tokens_per_call)):
        if count < 1:
            raise UserError(f"{name} is {count}; it must be at least 1")
    ends = () if eos_id is None else tuple(np.atleast_1d(eos_id).tolist())
    processors = tuple(with_state(processor) for processor in processors)
    fixed = dict(
        count=tokens_per_call, sampling=sampling, updates=tuple(p.update for p in processors), ends=ends
    )
    key = jax.random.key(0) if key is None else key
    return Stream(Decoder(config, params), prompts, processors, max_new_tokens, key, fixed)


class Stream(Iterator[Drawn]):
    """Tokens as they are drawn. Rows that have ended, or that nobody wants any more, drop out."""

    def __init__(self, decoder, prompts, processors, max_new_tokens, key, fixed):
        count, self.ends = fixed["count"], fixed["ends"]
        context, calls = decoder.config.most_cached, -(-max_new_tokens // count)
        start_id = decoder.config.start_id
        longest = min(max(map(len, prompts)), context) if start_id is None else 1
        # A token is drawn after at most `context` others, and the next call's first after all of this one's:
        # calls that go past that read windows, unless it is beyond what is asked for.
        cached = calls if longest + max_new_tokens <= context + 1 else (context - longest) // count
        packed = Prompts.pack(prompts, context, max_new_tokens, calls * count, start_id)
        self._states = tuple(processor.init(packed) for processor in processors)
        hidden_BD, cache = packed._replace(room=cached * count).read(decoder)
        free = ((0, 0), (0, calls * count))
        tokens_BT, mask_BT = packed.begun()
        self._carried = Carried(
            cache,
            hidden_BD,
            np.pad(tokens_BT, free),
            np.pad(mask_BT, free),
            np.int32(tokens_BT.shape[1]),
            np.zeros(len(prompts), bool),
            np.arange(len(prompts), dtype=np.int32),
        )
        self._decoder, self._processors, self._key, self._fixed = decoder, processors, key, fixed
        self._call, self._cached, self._left = 0, cached, max_new_tokens
        self._rows = np.arange(len(prompts))  # those that are still computed
        self._done = np.zeros(len(prompts), bool)
        self._last = np.zeros(len(prompts), np.int32)

    def __repr__(self) -> str:
        return f"Stream({len(self._done)} prompts, at most {self._left} more tokens each)"

    def __next__(self) -> Drawn:
        if not self._left or self._done.all():
            raise StopIteration
        if self._call == self._cached:
            self._carried = self._carried._replace(cache=None)
        self._drop_ended()
        weights = tuple(processor.weights for processor in self._processors)
        key = jax.random.fold_in(self._key, self._call)
        self._carried, self._states, drawn = draw(
            *self._decoder, self._carried, self._states, weights, key, **self._fixed
        )
        _PROGRAMS.setdefault(self._outline(len(self._rows)), set()).add(_types(self._carried, self._states))
        drawn = Drawn(*(np.asarray(x)[:, : self._left] for x in drawn))
        self._call, self._left = self._call + 1, self._left - drawn.tokens.shape[1]
        shape = (len(self._done), drawn.tokens.shape[1])
        everyone = Drawn(
            np.broadcast_to(self._last[:, None], shape).copy(), *np.zeros((2, *shape), np.float32)
        )
        for all_rows, computed in zip(everyone, drawn, strict=True):
            all_rows[self._rows] = computed
        self._last = everyone.tokens[:, -1].copy()
        self._done[self._rows] |= np.isin(drawn.tokens, self.ends).any(axis=1)
        return everyone

    def cancel(self, rows: Sequence[int]) -> None:
        """End some rows, by their places among the prompts: they repeat their last token from here on.

        Raises:
          UserError: a row that there is not.
        """
        for row in rows:
            if not 0 <= row < len(self._done):
                raise UserError(f"row {row} cannot be cancelled; there are rows 0 to {len(self._done) - 1}")
        self._done[list(rows)] = True
        self._carried = self._carried._replace(done_B=self._done[self._rows])

    def _drop_ended(self):
        """Compute fewer rows where the program for so few is there already: compiling takes longer than rows.

        A power of two of them, those that have not ended and as many of the others as it takes.
        """
        ended = self._done[self._rows]
        if draws_by_group(self._decoder.config, self._fixed["sampling"], self._fixed["updates"]):
            return  # its draws depend on how many rows there are
        if any(processor.select is None for processor in self._processors):
            return
        order = np.argsort(ended, kind="stable")
        size = 1 << (max(1, int((~ended).sum())) - 1).bit_length()
        while size < len(order):
            rows = np.sort(order[:size])
            if self._outline(size) in _PROGRAMS:
                carried = self._carried.select(rows)
                states = tuple(
                    processor.select(state, rows)
                    for processor, state in zip(self._processors, self._states, strict=True)
                )
                if _types(carried, states) in _PROGRAMS[self._outline(size)]:
                    self._carried, self._states, self._rows = carried, states, self._rows[rows]
                    return
            size *= 2

    def _outline(self, size: int):
        """Return what decides which program `draw` runs, the shapes of its arrays aside."""
        return (self._decoder.config, size, self._carried.cache is None, *self._fixed.values())


def _types(*arrays):
    leaves, structure = jax.tree.flatten(arrays)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
