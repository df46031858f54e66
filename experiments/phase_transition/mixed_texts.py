"""Real text of several kinds as one file: to train small models on, with names and phrases that come again.

State of the Union addresses (packaged), 26 domains of MiniPile, 125 earnings calls, Shakespeare; all but the
first from JAXLLM_DATA, each under its own licence. 23 MB.
"""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from experiments.shared.real_data import data_folder
from jaxllm.atomic import write_file
from jaxllm.data.embedded import sotu_addresses


def write_mixed_texts(path: str | Path) -> Path:
    """Write the texts as jsonl, a document a line, where they are not yet; return the path.

    Raises:
      UserError: JAXLLM_DATA is not set, or lacks one of them.
    """
    path = Path(path)
    if not path.is_file():
        documents = [*_addresses(), *_minipile(), *_calls(), *_plays()]
        write_file(path, "".join(json.dumps({"text": one}) + "\n" for one in documents).encode())
    return path


def join_calls(lines: Iterator[str]) -> Iterator[str]:
    """Yield the texts of calls: "# name" begins one, "## n" a speaker's turn, others are word TAB mark.

    Examples:
      >>> list(join_calls(["# a", "## 0", "Good\\t\\tUC", "day\\t,\\tLC", "## 1", "Hello\\t.\\tUC"]))
      ['Good day,\\nHello.']
    """
    turns: list[list[str]] = []
    for line in lines:
        if line.startswith("# "):
            if turns:
                yield "\n".join(map(" ".join, turns))
            turns = []
        elif line.startswith("## "):
            turns.append([])
        elif line:
            word, mark, *_ = line.split("\t")
            turns[-1].append(word + mark)
    if turns:
        yield "\n".join(map(" ".join, turns))


def _addresses() -> list[str]:
    return [one["text"] for one in sotu_addresses()]


def _minipile() -> list[str]:
    return [
        json.loads(line)["text"] for line in _read("test_time_training_nn", "minipile", "minipile.jsonl.xz")
    ]


def _calls() -> list[str]:
    return list(join_calls(_read("punctuation_restoration", "earnings22", "reference.tsv.xz")))


def _plays() -> list[str]:
    lines, size = list(_read("tinyshakespeare", "input.txt.xz")), 1000
    return ["\n".join(lines[at : at + size]) for at in range(0, len(lines), size)]


def _read(*parts: str) -> Iterator[str]:
    with lzma.open(data_folder(*parts), "rt", encoding="utf-8") as file:
        yield from (line.removesuffix("\n") for line in file)
