"""An encoder with a head of labels, ready to say them of texts or of words."""

import functools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm import models
from jaxllm.data import Labelled, Tokenizer
from jaxllm.data.labelled import EncodedText, Text, check_texts, encode_texts, padded_batch, padded_length
from jaxllm.data.word_windows import encode_windows
from jaxllm.errors import UserError
from jaxllm.score import accuracy, macro_f1
from jaxllm.text.load import is_run, load_model_and_tokenizer, saved_config

_SAVED = ("longest", "marked", "long_texts")


class Labeller:
    """A model that labels texts, or each word of a text. It unpacks as (config, params, tokenizer).

    Args:
      config: a model with head="text_labels" or "token_labels".
      params: its parameters.
      tokenizer: its tokenizer.
      longest: most tokens of a text; None: what the model has positions for, or its context_length.
      marked: which of a word's tokens carries its label.
      long_texts: cut texts with more tokens, or refuse them; lists of words are never cut: longer ones are
        read in windows.
      overlap: words that a window reads beyond its own, on either side.
      batch_size: texts, or windows, that are read at once.

    Raises:
      UserError: a model without such a head.
    """

    def __init__(
        self,
        config: models.LanguageModel,
        params: Any,
        tokenizer: Tokenizer,
        *,
        longest: int | None = None,
        marked: Literal["first", "last"] = "first",
        long_texts: Literal["cut", "refuse"] = "cut",
        overlap: int = 16,
        batch_size: int = 32,
    ):
        if not config.labels:
            raise UserError(
                f"the model has head='{config.head}', which says no labels; train one with text.train_labels"
            )
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.longest = min(longest or config.context_length, config.most_positions or np.inf)
        self._marked, self._cut, self._rows = marked, long_texts == "cut", batch_size
        self._overlap = overlap

    @classmethod
    def load(
        cls, source: str | os.PathLike, checkpoint: Literal["latest", "best"] = "latest", **options
    ) -> "Labeller":
        """Return that of a run of `train_labels`, or of a pretrained folder; options are those above."""
        source = os.fspath(source)
        model = load_model_and_tokenizer(source, checkpoint)
        if is_run(source):
            saved = saved_config(source)
            options = {name: saved[name] for name in _SAVED if name in saved} | options
        return cls(*model, **options)

    def __iter__(self) -> Iterator[Any]:
        yield self.config
        yield self.params
        yield self.tokenizer

    @property
    def of_words(self) -> bool:
        """Whether it labels words, and not texts."""
        return self.config.head == "token_labels"

    def log_probs(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """Return the log-probability of each label in `config.labels`: of a text [C], or of its words [W, C].

        Args:
          texts: strings, or pairs of them; of a model that labels words lists of words.

        Raises:
          UserError: something else, a text that is too long, a word without a token.
        """
        if isinstance(texts, str):
            raise UserError("texts is one string; give a list of them")
        texts = list(texts)
        check_texts(texts, self.of_words)
        if not self.of_words:
            encoded = encode_texts(self.tokenizer, texts, longest=self.longest, cut=self._cut)
            return [log_probs_C for _, log_probs_C in sorted(self._read(encoded), key=lambda one: one[0])]
        windows, text_of = [], []
        options = dict(longest=self.longest, overlap=self._overlap, marked=self._marked)
        for number, words in enumerate(texts):
            try:
                some = encode_windows(self.tokenizer, words, **options)
            except UserError as error:
                raise UserError(f"{error} (in text {number})") from error
            windows += [encoded for _, encoded in some]
            text_of += [number] * len(some)
        found = [np.zeros((len(words), len(self.config.labels)), np.float32) for words in texts]
        for number, log_probs_TC in self._read(windows):
            places = np.flatnonzero(windows[number].words_N >= 0)
            found[text_of[number]][windows[number].words_N[places]] = log_probs_TC[places]
        return found

    def _read(self, encoded: Sequence[EncodedText]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (its number, its log-probabilities) of each text or window, batched by length."""
        order = np.argsort([len(one.ids_N) for one in encoded], kind="stable")
        for begin in range(0, len(order), self._rows):
            numbers = order[begin : begin + self._rows]
            some = [encoded[number] for number in numbers]
            length = padded_length(max(len(one.ids_N) for one in some), self.longest)
            rows = min(self._rows, 1 << (len(some) - 1).bit_length())
            batch = padded_batch(self.tokenizer, some, None, rows=rows, length=length)
            log_probs = _log_probs(self.config, self._ready, batch)
            if not log_probs.is_fully_addressable:
                log_probs = multihost_utils.process_allgather(log_probs, tiled=True)
            yield from zip(numbers, np.asarray(log_probs), strict=False)

    @functools.cached_property
    def _ready(self) -> Any:
        # On a CPU a scan over stacked layers would copy each layer at every call.
        if jax.default_backend() != "cpu" or jax.process_count() > 1 or models.is_apart(self.params):
            return self.params
        return jax.jit(models.layers_apart)(self.params)

    def predict(self, texts: Sequence[Text]) -> list[Any]:
        """Return the most probable label of each text, or a list of them, one a word; see `log_probs`."""
        names = self.config.labels
        best = (one.argmax(axis=-1) for one in self.log_probs(texts))
        return [[names[number] for number in one] if self.of_words else names[one] for one in best]

    def score(self, examples: Labelled) -> dict[str, float]:
        """Return {"loss", "accuracy", "macro_f1", "labels"} over the labels of examples.

        Loss is in nats a label; "labels" is how many there are.

        Raises:
          UserError: labels that the model does not have, or of another kind.
        """
        true_N = self.true_ids(examples)
        return label_scores(self.log_probs(examples.texts), true_N)

    def true_ids(self, examples: Labelled) -> np.ndarray:
        """Return the labels of examples as places in `config.labels`, [N], those of words one after another.

        Raises:
          UserError: labels that the model does not have, or of another kind.
        """
        if examples.of_words != self.of_words:
            kinds = ("texts", "words")
            raise UserError(
                f"the examples have labels of {kinds[examples.of_words]}, and the model says those of "
                f"{kinds[self.of_words]}; give others"
            )
        return np.concatenate([np.atleast_1d(own) for own in examples.ids(self.config.labels)])


def label_scores(log_probs: Sequence[np.ndarray], true_N: np.ndarray) -> dict[str, float]:
    """Return what `Labeller.score` does of what `log_probs` and `true_ids` gave."""
    log_probs_NC = np.concatenate([np.atleast_2d(one) for one in log_probs])
    loss = -float(np.mean(log_probs_NC[np.arange(len(true_N)), true_N], dtype=np.float64))
    scores = dict(accuracy=accuracy(log_probs_NC, true_N), macro_f1=macro_f1(log_probs_NC, true_N))
    return {"loss": loss, **scores, "labels": len(true_N)}


@partial(jax.jit, static_argnames="config")
def _log_probs(config, params, batch) -> jax.Array:
    types = batch["token_types"] if config.num_token_types else None
    logits = models.apply(config, params, batch["tokens"], segment_ids=batch["mask"], token_types=types)
    return jax.nn.log_softmax(logits, axis=-1)
