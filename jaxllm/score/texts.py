"""Perplexity and bits per byte of texts of any length, in windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxllm import models
from jaxllm.data import start_id
from jaxllm.data.examples import Example
from jaxllm.errors import UserError
from jaxllm.score.choices import score_choices
from jaxllm.score.sequences import TOKENS_PER_BATCH, check_tokenizer, score_sequences


@dataclass(frozen=True)
class TextScore:
    """What a model says of a text. Sums over documents are sums of these fields."""

    log_prob: float  # nats
    tokens: int
    bytes: int  # of the original text in UTF-8
    words: int  # that whitespace separates

    def __add__(self, other: "TextScore") -> "TextScore":
        return TextScore(
            self.log_prob + other.log_prob,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.words + other.words,
        )

    @property
    def loss(self) -> float:
        """Nats a token."""
        return -self.log_prob / self.tokens

    @property
    def perplexity(self) -> float:
        """Of tokens: comparable between models of one tokenizer alone."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return -self.log_prob / math.log(2) / self.bytes


class Window(NamedTuple):
    """A part of a sequence of ids that is scored at once."""

    begin: int  # first id that is read
    end: int  # one past the last id, which is predicted and not read
    scored: int  # how many ids at the end are scored: the others are context


def rolling_windows(length: int, window: int, stride: int | None = None) -> list[Window]:
    """Return windows that predict every id of a sequence but the first exactly once.

    The first window predicts as many ids as it reads. Each later one ends where `stride` new ids end, and
    reads what comes before them. With stride equal to the window (the default) the windows are disjoint,
    but for the last, which looks further back; as lm-evaluation-harness does. A shorter stride gives every
    token more context and costs window / stride as much.

    Args:
      length: ids in the sequence.
      window: ids that the model reads at once.
      stride: ids that a window after the first predicts; None is `window`.

    Raises:
      UserError: a stride that is not from 1 to `window`.

    Examples:
      >>> rolling_windows(8, window=3)
      [Window(begin=0, end=4, scored=3), Window(begin=3, end=7, scored=3), Window(begin=4, end=8, scored=1)]
      >>> rolling_windows(6, window=3, stride=1)[1:]
      [Window(begin=1, end=5, scored=1), Window(begin=2, end=6, scored=1)]
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise UserError(f"stride is {stride}; it must be from 1 to the window of {window} tokens")
    windows, end = [], min(length, window + 1)
    if length > 1:
        windows.append(Window(0, end, end - 1))
    while end < length:
        scored = min(stride, length - end)
        end += scored
        windows.append(Window(end - window - 1, end, scored))
    return windows


def rolling_log_probs(
    config: models.LanguageModel,
    params,
    documents: Sequence[Sequence[int]],
    window: int,
    stride: int | None = None,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> np.ndarray:
    """Return the summed log-probability of each sequence of any length, after its first id: float64 [N].

    Args:
      config: the model.
      params: its parameters.
      documents: token ids, at least one each.
      window: see `rolling_windows`.
      stride: see `rolling_windows`.
      tokens_per_batch: see `score_sequences`.
      progress: show a bar.
    """
    windows = [(d, w) for d, ids in enumerate(documents) for w in rolling_windows(len(ids), window, stride)]
    sequences = [documents[d][w.begin : w.end] for d, w in windows]
    totals = np.zeros(len(documents))
    scored = score_sequences(config, params, sequences, tokens_per_batch=tokens_per_batch, progress=progress)
    for (d, w), log_probs in zip(windows, scored, strict=True):
        totals[d] += log_probs[len(log_probs) - w.scored :].sum(dtype=np.float64)
    return totals


def score_examples(
    config: models.LanguageModel,
    params,
    tokenizer,
    examples: Sequence[Example],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> list[TextScore]:
    """Score what is to be predicted of each example: a completion, or the assistant's turns.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`.
      examples: what the pieces of `jaxllm.data.open_source` hold.
      tokens_per_batch: see `score_sequences`.
      progress: show a bar.

    Raises:
      UserError: no tokenizer, or an example that is longer than the model's context.
    """
    check_tokenizer(tokenizer)
    if config.start_id is not None:
        return _score_answers(config, params, tokenizer, examples, tokens_per_batch, progress)
    encoded = [example.encode(tokenizer) for example in examples]
    for number, (ids, _) in enumerate(encoded, 1):
        if len(ids) > config.context_length + 1:
            raise UserError(
                f"example {number} has {len(ids) - 1} tokens, and the model's context is "
                f"{config.context_length}; shorten it, or leave it out"
            )
    rows = [ids for ids, _ in encoded]
    scored = score_sequences(config, params, rows, tokens_per_batch=tokens_per_batch, progress=progress)
    return [
        TextScore(
            float(log_probs[predicted[1:]].sum(dtype=np.float64)),
            int(predicted[1:].sum()),
            len(example.predicted_text.encode()),
            len(example.predicted_text.split()),
        )
        for log_probs, (_, predicted), example in zip(scored, encoded, examples, strict=True)
    ]


def _score_answers(config, params, tokenizer, examples, tokens_per_batch, progress) -> list[TextScore]:
    for example in examples:
        if not hasattr(example, "encode_pair"):
            raise UserError("an encoder-decoder answers sources; give rows with prompt and completion")
    encoded = [example.encode_pair(tokenizer) for example in examples]
    sources = [ids[~predicted].tolist() for ids, predicted in encoded]
    answers = [[ids[predicted].tolist()] for ids, predicted in encoded]
    options = dict(tokens_per_batch=tokens_per_batch, progress=progress)
    scored = score_choices(config, params, sources, answers, **options)
    texts = [example.predicted_text for example in examples]
    return [
        TextScore(one.log_prob, one.tokens, len(text.encode()), len(text.split()))
        for [one], text in zip(scored, texts, strict=True)
    ]


def score_texts(
    config: models.LanguageModel,
    params,
    tokenizer,
    texts: str | Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> TextScore | list[TextScore]:
    """Score texts of any length, each by itself; one text gives its `TextScore`, several a list.

    Each text is read after the token that begins a document (`data.start_id`), so that its first token is
    scored too.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`.
      texts: one document, or several; an empty one scores 0 of 0 tokens.
      window: tokens that the model reads at once; None is its context.
      stride: see `rolling_windows`.
      tokens_per_batch: see `score_sequences`.
      progress: show a bar.

    Raises:
      UserError: no tokenizer, a window beyond the model's context, or a wrong stride.
    """
    check_tokenizer(tokenizer)
    window = config.context_length if window is None else window
    if not 1 <= window <= config.context_length:
        raise UserError(
            f"window is {window}; it must be from 1 to the model's context of {config.context_length} tokens"
        )
    start = start_id(tokenizer)
    several = [texts] if isinstance(texts, str) else list(texts)
    documents = [[start, *ids] for ids in tokenizer.encode_batch(several)]
    options = dict(tokens_per_batch=tokens_per_batch, progress=progress)
    totals = rolling_log_probs(config, params, documents, window, stride, **options)
    scores = [
        TextScore(float(total), len(ids) - 1, len(text.encode()), len(text.split()))
        for total, ids, text in zip(totals, documents, several, strict=True)
    ]
    return scores[0] if isinstance(texts, str) else scores
