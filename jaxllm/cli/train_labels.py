"""jaxllm train_labels"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax

from jaxllm import parallel
from jaxllm.cli.parse import parse
from jaxllm.cli.train import check_left_to_start
from jaxllm.config import UserPath
from jaxllm.data import read_labelled
from jaxllm.errors import UserError
from jaxllm.text import LabelConfig, train_labels
from jaxllm.text.labels import OWN_FIELDS

_DESCRIPTION = """Train an encoder to label texts, or the words of a text, or go on where --out ends.

  jaxllm train_labels --start my-minilm/ --data reviews.csv --out runs/mood     # columns text, label
  jaxllm train_labels --start OWNER/NAME --data tags.jsonl --lora.rank 8        # lists: words, labels
  jaxllm label runs/mood --data more.csv                                        # then says them

--start is a BERT, RoBERTa or DeBERTa: a pretrained folder, a run of this command, or the hub's OWNER/NAME."""


@dataclass(frozen=True)
class TrainLabelsConfig(LabelConfig):
    """Values of `jaxllm train_labels`: a run, and where its examples are."""

    data: UserPath | None = None  # jsonl, csv, tsv, or hf:NAME: a text and a label in each row
    held_out: UserPath | None = None  # the same, to evaluate on; None: a tenth of the data
    text_column: str | None = None  # None: text, or words
    label_column: str | None = None  # None: label, or labels


def main(argv: Sequence[str]) -> None:
    """Train as the command line says and print the held-out scores."""
    config, _ = parse(TrainLabelsConfig, argv, prog="jaxllm train_labels", description=_DESCRIPTION)
    if config.start is not None:
        check_left_to_start(argv, config.start, OWN_FIELDS)
    if config.data is None:
        raise UserError("no examples to learn from; give --data FILE, with a text and a label in each row")
    columns = dict(text=config.text_column, label=config.label_column)
    examples = read_labelled(config.data, **columns)
    held_out = None if config.held_out is None else read_labelled(config.held_out, **columns)
    run = LabelConfig(**{field.name: getattr(config, field.name) for field in fields(LabelConfig)})
    if config.distributed:
        parallel.initialize()
    trained = train_labels(run, examples, held_out)
    if jax.process_index() == 0:
        scores, out = trained.evaluation, shlex.quote(config.out)
        print(
            f"held-out accuracy {scores['accuracy']:.4f}, macro-F1 {scores['macro_f1']:.4f}, loss "
            f"{scores['loss']:.4f} nats a label, over {scores['labels']:,} labels\n"
            f"label with: jaxllm label {out} --text 'A text.'"
        )
