"""jaxllm punctuate"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxllm import compilation_cache
from jaxllm.atomic import write_file
from jaxllm.cli.parse import parse
from jaxllm.config import Config, CountOrZero, UserPath
from jaxllm.data.labelled import read_rows
from jaxllm.errors import UserError
from jaxllm.punctuate import Punctuator

_DESCRIPTION = """Put marks into text that has none, or has some; once more changes nothing.

  jaxllm punctuate said.txt --model runs/marks                 # spaces and letters stay as they are
  jaxllm punctuate said.txt --model runs/marks --confidence    # a line a word: mark, probability, word
  recogniser | jaxllm punctuate - --model runs/marks --ahead 4  # word by word, 4 words behind
  jaxllm punctuate said.jsonl --model runs/marks --out marked.jsonl   # each row's text

The model is a run of `jaxllm train_punctuator`."""


@dataclass(frozen=True)
class PunctuateCommand(Config):
    """Values of `jaxllm punctuate`: of what, by which model."""

    file: tyro.conf.Positional[UserPath]  # text, or .jsonl with a column text; -: what a pipe gives
    model: UserPath = "runs/marks"  # a run of train_punctuator, or a pretrained folder
    existing: Literal["keep", "replace"] = "keep"  # marks that the text has already
    confidence: bool = False  # print a line for each word: its mark, the probability, the word
    ahead: CountOrZero | None = None  # of words, as they come: how many to wait for; None: read all first
    checkpoint: Literal["latest", "best"] = "latest"  # of a run
    out: UserPath | None = None  # write there, in place of printing

    def __post_init__(self):
        super().__post_init__()
        if self.ahead is not None:
            if self.file != "-":
                raise UserError(f"ahead is of words as a pipe gives them, and '{self.file}' is none; give -")
            self.refuse_set(("existing", "confidence", "out"), "text that is read whole")


def main(argv: Sequence[str]) -> None:
    """Print the text with marks, or write it."""
    config, _ = parse(PunctuateCommand, argv, prog="jaxllm punctuate", description=_DESCRIPTION)
    texts, is_rows = (None, False) if config.ahead is not None else _read(config.file)
    compilation_cache.enable()
    punctuator = Punctuator.load(config.model, config.checkpoint)
    if texts is None:
        for one in punctuator.stream(_words(), ahead=config.ahead):
            print(one.word + one.mark, end=" ", flush=True)
        print()
        return
    if config.confidence:
        said = ["".join(_lines(punctuator, text, config.existing)) for text in texts]
    else:
        said = [punctuator.punctuate(text, existing=config.existing) for text in texts]
    if is_rows and not config.confidence:
        said = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in said]
    if config.out is not None:
        write_file(config.out, "".join(said).encode())
    else:
        print("".join(said), end="")


def _read(file: str) -> tuple[list[str], bool]:
    """Return (texts, whether they are rows)."""
    if file == "-":
        return [sys.stdin.read()], False
    path = Path(file).expanduser()
    if path.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv"):
        return read_rows(file, text="text", must=False)[0], True
    try:
        return [path.read_text(encoding="utf-8-sig")], False
    except FileNotFoundError as error:
        raise UserError(f"'{file}' does not exist; give a file of text, or - for a pipe") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"'{file}' is no file of UTF-8 text; convert it first, or give another") from error


def _words() -> Iterator[str]:
    for line in sys.stdin:
        yield from line.split()


def _lines(punctuator: Punctuator, text: str, existing) -> Iterator[str]:
    for piece, said in punctuator.pieces(text, existing=existing):
        if said is not None:
            yield f"{said.mark or 'O'}\t{said.confidence:.4f}\t{piece}\n"
