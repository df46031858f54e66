"""jaxllm label"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from jaxllm import compilation_cache
from jaxllm.atomic import write_file
from jaxllm.cli.parse import parse
from jaxllm.config import Config, UserPath
from jaxllm.data import Labelled
from jaxllm.data.labelled import read_rows
from jaxllm.errors import UserError
from jaxllm.text import Labeller
from jaxllm.text.labeller import label_scores

_DESCRIPTION = """Label texts, or the words of a text, with an encoder that was trained to.

  jaxllm label runs/mood --text "What a film." --text "Never again."
  jaxllm label runs/mood --data more.csv --out said.jsonl    # and scores, where the rows have labels

The model is a run of `jaxllm train_labels`, or a pretrained folder or hub id with a head of labels."""


@dataclass(frozen=True)
class LabelCommand(Config):
    """Values of `jaxllm label`: which model, of what."""

    model: tyro.conf.Positional[UserPath]  # a run of train_labels, a pretrained folder, a hub id
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # a text; where words are labelled, cut at spaces
    data: UserPath | None = None  # rows with a text, or a list of words, each
    text_column: str | None = None  # None: text, or words
    label_column: str | None = None  # None: label, or labels
    checkpoint: Literal["latest", "best"] = "latest"  # of a run
    out: UserPath | None = None  # also write a JSON object for each text there

    def __post_init__(self):
        super().__post_init__()
        if bool(self.text) == (self.data is not None):
            raise UserError("give --text TEXT or --data FILE: one of the two says what to label")
        if self.data is None:
            self.refuse_set(("text_column", "label_column"), "--data")


def main(argv: Sequence[str]) -> None:
    """Print a line for each text, or word: label, probability, text."""
    config, _ = parse(LabelCommand, argv, prog="jaxllm label", description=_DESCRIPTION)
    texts, labels = list(config.text), None
    if config.data is not None:
        texts, labels = read_rows(config.data, text=config.text_column, label=config.label_column, must=False)
    compilation_cache.enable()
    labeller = Labeller.load(config.model, config.checkpoint)
    if labeller.of_words:
        texts = [text.split() if isinstance(text, str) else text for text in texts]
    true_N = None if labels is None else labeller.true_ids(Labelled(texts, labels))
    written, found = [], labeller.log_probs(texts)
    for text, log_probs in zip(texts, found, strict=True):
        names = [labeller.config.labels[number] for number in np.atleast_2d(log_probs).argmax(axis=1)]
        probabilities = np.exp(np.atleast_2d(log_probs).max(axis=1))
        parts = text if labeller.of_words else [text if isinstance(text, str) else " | ".join(text)]
        for part, name, probability in zip(parts, names, probabilities, strict=True):
            print(f"{name}\t{probability:.4f}\t{' '.join(part.split())}")
        if labeller.of_words:
            print()
        what = "labels" if labeller.of_words else "label"
        chances = [round(float(p), 6) for p in probabilities]
        said = (names, chances) if labeller.of_words else (names[0], chances[0])
        written.append(
            {"words" if labeller.of_words else "text": text, what: said[0], "probability": said[1]}
        )
    if true_N is not None:
        scores = label_scores(found, true_N)
        print(
            f"accuracy {scores['accuracy']:.4f}, macro-F1 {scores['macro_f1']:.4f}, "
            f"loss {scores['loss']:.4f} nats a label, over {scores['labels']:,} labels"
        )
    if config.out is not None:
        write_file(config.out, "".join(json.dumps(row) + "\n" for row in written).encode())
