"""A few-shot prompt that is read once, and what a model says after it."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.data.tokenizer import Tokenizer, encode_prompt
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder
from jaxllm.score.few_shot import FewShotTask, Values, label_tokens, marker_tokens
from jaxllm.score.sequences import check_tokenizer

_ROWS = 16  # queries of a call of the model; fewer are padded to it, so that few programs are compiled
_LEAST_PROMPT, _LEAST_QUERY = 256, 32  # tokens


class Readings(NamedTuple):
    """What a model says after each input of a prompt."""

    log_probs_NY: np.ndarray  # float64, of each label, over the whole vocabulary
    likeliest_N: np.ndarray  # the token that it would write, a label or not
    vectors_ND: np.ndarray  # float32, the mean hidden state of the input's tokens without the label's field


class FewShotPrompt:
    """Exemplars in a model's cache, read once, for any number of queries and of inputs drawn after them.

    Attributes:
      decoder: the model.
      task: fields and labels.
      labels: token ids of each label, one or several.
      cache: of the exemplars: one row.
      length: tokens of the exemplars.

    Examples:
      >>> from jaxllm import data
      >>> config = models.get_preset("gpt2-nano", vocab_size=257)
      >>> decoder = Decoder(config, models.init(config, jax.random.key(0)))
      >>> task = FewShotTask(("Text", "Tone"), ("bad", "good"))
      >>> prompt = FewShotPrompt(decoder, data.load_tokenizer("bytes"), task, [(["awful"], 0), (["nice"], 1)])
      >>> prompt.label_log_probs([["dull"], ["fine"], ["odd"]]).shape
      (3, 2)
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        task: FewShotTask,
        exemplars: Sequence[tuple[Values, int]],
        *,
        first_token_labels: bool = False,
        channel: bool = False,
    ):
        """Read the exemplars.

        Args:
          decoder: the model, prepared.
          tokenizer: the model's.
          task: fields and labels.
          exemplars: (values, number of the label) of each, in order; none is a prompt of a start token.
          first_token_labels: take a label for its first token, as the paper does, which labels that begin
            alike do not allow; otherwise all its tokens are scored.
          channel: write labels first, for `channel_log_probs`.

        Raises:
          UserError: an encoder-decoder, no tokenizer, labels that cannot be told apart, an exemplar with a
            line end, or more tokens than the model's context.
        """
        check_tokenizer(tokenizer)
        if decoder.config.start_id is not None:
            raise UserError(
                f"a few-shot prompt is continued, and {decoder.config.architecture} answers a source; give a "
                "decoder"
            )
        self.decoder, self.tokenizer, self.task = decoder, tokenizer, task
        self.labels = label_tokens(tokenizer, task, first_only=first_token_labels)
        self.markers = marker_tokens(tokenizer, task)
        write = task.channel_exemplar if channel else task.exemplar
        ids = encode_prompt(tokenizer, "".join(write(values, label) for values, label in exemplars))
        self.length, self._is_channel = len(ids), channel
        self.room = decoder.config.context_length - self.length  # tokens that may follow
        if self.room < 1:
            raise UserError(
                f"{len(exemplars)} exemplars are {self.length} tokens and the model's context is "
                f"{decoder.config.context_length}; give fewer or shorter ones"
            )
        padded = max(_LEAST_PROMPT, 1 << (self.length - 1).bit_length())
        tokens_1T, mask_1T = _left_padded([ids], 1, padded)
        # With room for the first field's marker, which inputs are drawn after.
        slots = padded + bucket(len(self.markers[0]))
        _, self.cache = decoder.prefill(tokens_1T, mask_1T, slots=slots)

    def label_log_probs(self, inputs: Sequence[Values]) -> np.ndarray:
        """Return log p(label | exemplars, input), over the whole vocabulary: float64 [N, Y].

        Raises:
          UserError: a query that does not fit the context, or what `FewShotTask.query` refuses.
        """
        return self.label_log_probs_of_ids(self._encode([self.task.query(values) for values in inputs]))

    def label_log_probs_of_ids(self, queries: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the same of queries that are token ids, each up to and with the label field's colon."""
        several = max(map(len, self.labels)) - 1
        self._check_room(queries, several)
        log_probs_NY = np.zeros((len(queries), len(self.labels)))
        for rows, (tokens_BT, mask_BT) in _batches(queries):
            hidden_BTD, cache = self._read(tokens_BT, mask_BT)
            log_probs_NY[rows] = self._labels_after(hidden_BTD[:, -1])[: len(rows)]
            if several:
                log_probs_NY[rows] += self._rest_of_labels(cache, several)[: len(rows)]
        return log_probs_NY

    def first_label_log_probs(self, hidden_ND: np.ndarray) -> np.ndarray:
        """Return log p of each label's first token after hidden states: float64 [N, Y]."""
        found = [
            self._labels_after(np.resize(some_nD, (_ROWS, some_nD.shape[1])))[: len(some_nD)]
            for some_nD in (hidden_ND[at : at + _ROWS] for at in range(0, len(hidden_ND), _ROWS))
        ]
        return np.concatenate(found)

    def channel_log_probs(self, inputs: Sequence[Values]) -> np.ndarray:
        """Return log p(input | exemplars, label), label first: float64 [N, Y].

        Raises:
          UserError: the prompt was not made with `channel`, or what `label_log_probs` refuses.
        """
        if not self._is_channel:
            raise UserError("the exemplars are written label last; make the prompt with channel=True")
        lines, scored = [], []
        for values in inputs:
            for label in range(len(self.labels)):
                line, text = self.task.channel_query(values, label)
                ids = self.tokenizer.encode(line + text).tolist()
                lines.append(ids)
                scored.append(len(ids) - len(self.tokenizer.encode(line)))
        self._check_room(lines, 0)
        log_probs_N = np.zeros(len(lines))
        for rows, (tokens_BT, mask_BT) in _batches(lines):
            hidden_BTD, _ = self._read(tokens_BT, mask_BT)
            token_BT = np.asarray(_token_log_probs(*self.decoder, hidden_BTD, tokens_BT), np.float64)
            for place, row in enumerate(rows):
                log_probs_N[row] = token_BT[place, -scored[row] :].sum()
        return log_probs_N.reshape(len(inputs), len(self.labels))

    def read(self, inputs: Sequence[Values]) -> "Readings":
        """Return what one pass over each input says: labels, the likeliest token, the input's vector.

        Raises:
          UserError: what `label_log_probs` refuses.
        """
        queries = self._encode([self.task.query(values) for values in inputs])
        counts = [len(ids) for ids in self._encode([self.task.input_text(values) for values in inputs])]
        several = max(map(len, self.labels)) - 1
        self._check_room(queries, several)
        log_probs_NY = np.zeros((len(queries), len(self.labels)))
        likeliest_N = np.zeros(len(queries), np.int64)
        vectors_ND = np.zeros((len(queries), self.decoder.config.embed_dim), np.float32)
        for rows, (tokens_BT, mask_BT) in _batches(queries):
            inside_BT = np.zeros_like(mask_BT)
            for place, row in enumerate(rows):
                begin = tokens_BT.shape[1] - len(queries[row])
                inside_BT[place, begin : begin + counts[row]] = True
            hidden_BTD, cache = self._read(tokens_BT, mask_BT)
            log_probs_NY[rows] = self._labels_after(hidden_BTD[:, -1])[: len(rows)]
            if several:
                log_probs_NY[rows] += self._rest_of_labels(cache, several)[: len(rows)]
            likeliest_B = _likeliest(*self.decoder, hidden_BTD[:, -1])
            likeliest_N[rows] = np.asarray(likeliest_B)[: len(rows)]
            vectors_ND[rows] = np.asarray(models.mean_pool(hidden_BTD, inside_BT))[: len(rows)]
        return Readings(log_probs_NY, likeliest_N, vectors_ND)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self.tokenizer.encode_batch(texts)]

    def _check_room(self, queries, more: int) -> None:
        longest = max(map(len, queries), default=0) + more
        if longest > self.room:
            raise UserError(
                f"a query of {longest} tokens does not fit: the exemplars leave room for {self.room} "
                "in the model's context; shorten the text, or give fewer exemplars"
            )

    def _read(self, tokens_BT, mask_BT):
        B, T = tokens_BT.shape
        return self.decoder.extend(tokens_BT, self.decoder.fork(self.cache, [0] * B, slots=T), mask_BT)

    def _labels_after(self, hidden_BD) -> np.ndarray:
        firsts_Y = np.array([ids[0] for ids in self.labels])
        return _vocabulary_log_probs(*self.decoder, hidden_BD, firsts_Y)

    def _rest_of_labels(self, cache: dict, several: int) -> np.ndarray:
        """Return log p of each label's tokens after the first, [B, Y]: a query's cache is forked for each."""
        B, Y = models.cache_rows(cache), len(self.labels)
        tokens_YT = np.zeros((Y, several + 1), np.int32)
        for label, ids in enumerate(self.labels):
            tokens_YT[label, : len(ids)] = ids
        forked = self.decoder.fork(cache, np.repeat(np.arange(B), Y), slots=several)
        hidden_RTD, _ = self.decoder.extend(np.tile(tokens_YT[:, :-1], (B, 1)), forked)
        log_probs_RT = np.asarray(
            _all_token_log_probs(*self.decoder, hidden_RTD, np.tile(tokens_YT[:, 1:], (B, 1))), np.float64
        )
        is_there_YT = np.arange(1, several + 1) < np.array([len(ids) for ids in self.labels])[:, None]
        return (log_probs_RT.reshape(B, Y, several) * is_there_YT).sum(axis=2)


def bucket(length: int) -> int:
    """Return the number of slots that holds `length` tokens: few numbers, so that few programs are compiled.

    Examples:
      >>> [bucket(n) for n in (3, 30, 40, 50, 70, 100)]
      [32, 32, 48, 64, 96, 128]
    """
    size = max(_LEAST_QUERY, 1 << (length - 1).bit_length())
    return size * 3 // 4 if length <= size * 3 // 4 and size > _LEAST_QUERY else size


def _batches(queries: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray]]]:
    """Yield (which queries, their ids and mask padded on the left): the longest first."""
    order = sorted(range(len(queries)), key=lambda row: -len(queries[row]))
    for at in range(0, len(order), _ROWS):
        rows = order[at : at + _ROWS]
        yield (
            rows,
            _left_padded([queries[row] for row in rows], _ROWS, bucket(len(queries[rows[0]]))),
        )


def _left_padded(rows: Sequence[Sequence[int]], size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens_BT, mask_BT = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
    mask_BT[len(rows) :, -1] = True  # rows that nobody reads
    for row, ids in enumerate(rows):
        tokens_BT[row, -len(ids) :], mask_BT[row, -len(ids) :] = ids, True
    return tokens_BT, mask_BT


def _vocabulary_log_probs(config, params, hidden_BD, tokens_Y) -> np.ndarray:
    return np.asarray(_log_probs(config, params, hidden_BD, tokens_Y), np.float64)


@partial(jax.jit, static_argnames="config")
def _log_probs(config, params, hidden_BD, tokens_Y):
    """Return log p of some tokens [B, Y], in float32 over the whole vocabulary."""
    logits_BV = models.logits(config, params, hidden_BD).astype(jnp.float32)
    return logits_BV[:, tokens_Y] - jax.nn.logsumexp(logits_BV, axis=1, keepdims=True)


@partial(jax.jit, static_argnames="config")
def _likeliest(config, params, hidden_BD):
    return jnp.argmax(models.logits(config, params, hidden_BD), axis=-1)


@partial(jax.jit, static_argnames="config")
def _all_token_log_probs(config, params, hidden_BTD, targets_BT):
    return models.token_log_probs(config, params, hidden_BTD, targets_BT)


@partial(jax.jit, static_argnames="config")
def _token_log_probs(config, params, hidden_BTD, tokens_BT):
    """Return log p of each token but the first after those before it, [B, T - 1]."""
    return models.token_log_probs(config, params, hidden_BTD[:, :-1], tokens_BT[:, 1:])
