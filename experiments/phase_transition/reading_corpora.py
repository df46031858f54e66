"""Words that people read, with their reading times, frequencies and syntax, from files that the reader has.

Natural Stories (Futrell et al. 2021) and Provo (Luke and Christianson 2018), frequencies of WikiText-2, the
Universal Dependencies English PUD treebank.
"""

import csv
import lzma
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.errors import UserError

_FOLDER = "phase_transition"


@dataclass(frozen=True, eq=False)
class ReadingCorpus:
    """N words in reading order."""

    name: str
    words: list[str]
    texts: np.ndarray  # [N] number of the text that each belongs to
    times: dict[str, np.ndarray]  # measure -> [N], NaN where there is none
    lags: int  # words whose processing spills over

    def by_text(self) -> list[list[str]]:
        """Return the words of each text."""
        parts = np.split(np.arange(len(self.words)), np.flatnonzero(np.diff(self.texts)) + 1)
        return [[self.words[i] for i in part] for part in parts]

    def controls(self, counts: dict[str, int]) -> np.ndarray:
        """Return log frequency and length of each word, [N, 2]; an unknown word has count 0."""
        known = [counts.get(re.sub(r"^\W+|\W+$", "", word.lower()), 0) for word in self.words]
        return np.column_stack([np.log1p(known), [len(word) for word in self.words]])


def natural_stories() -> ReadingCorpus:
    """Return Natural Stories: self-paced reading of ten stories, means over about 80 readers.

    Its published per-word times are shifted by one word: the time at a word is that of the word after it.
    Both columns are given, "published" and "aligned".
    """
    rows = _rows(
        data_folder(_FOLDER, "natural_stories", "by_word.tsv.xz"), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    times = {name: _numbers(rows, column) for name, column in (("aligned", "rt"), ("published", "rt_file"))}
    words = [row["word"] for row in rows]
    return ReadingCorpus(
        "Natural Stories", words, np.array([int(row["item"]) for row in rows]), times, lags=4
    )


def provo() -> ReadingCorpus:
    """Return Provo: eye movements over 55 short texts, means over 84 readers.

    The measures were rescaled linearly by whom the table comes from (so slopes are no milliseconds, and the
    gain of a regression is not touched); the first word of each text is missing, which is what tells where a
    text begins. They are shifted to lie above 0.
    """
    rows = _rows(data_folder(_FOLDER, "provo", "provo.csv.xz"))
    places = [(int(row["sentence_id"]), int(row["word_id"])) for row in rows]
    begins = [
        i == 0 or (sentence != places[i - 1][0] and word > 1) for i, (sentence, word) in enumerate(places)
    ]
    times = {"first fixation": _numbers(rows, "FFD"), "go-past": _numbers(rows, "GPT")}
    times = {name: values - np.nanmin(values) + 1 for name, values in times.items()}
    return ReadingCorpus("Provo", [row["word"] for row in rows], np.cumsum(begins) - 1, times, lags=2)


def word_counts() -> dict[str, int]:
    """Return how often each lower-cased word occurs in WikiText-2's training text."""
    text = lzma.open(data_folder(_FOLDER, "wikitext2", "train_vocab.txt.xz"), "rt", encoding="utf-8").read()
    counts: dict[str, int] = {}
    for line in text.splitlines():
        word, _, count = line.rpartition("\t" if "\t" in line else " ")
        counts[word.lower()] = counts.get(word.lower(), 0) + int(count)
    return counts


@dataclass(frozen=True, eq=False)
class Parse:
    """A sentence with a governor for each word."""

    text: str
    ends: np.ndarray  # [W] where each word ends in the text
    governors: np.ndarray  # [W] number of the word's governor; -1: the root
    relations: list[str]


def english_pud(limit: int | None = None) -> list[Parse]:
    """Return sentences of the PUD treebank, news and Wikipedia: words without punctuation have governors.

    Punctuation marks are words of the text, and no one asks for their governor (-1).
    """
    text = lzma.open(
        data_folder(_FOLDER, "ud_english_pud", "en_pud-ud-test.conllu.xz"), "rt", encoding="utf-8"
    ).read()
    return [parse_conllu(block) for block in text.strip().split("\n\n")[:limit]]


def parse_conllu(block: str) -> Parse:
    """Return a sentence of a CoNLL-U file.

    Raises:
      UserError: a line does not have ten columns.

    Examples:
      >>> lines = ("1 I _ _ _ _ 2 nsubj _ _", "2 saw _ _ _ _ 0 root _ _")
      >>> found = parse_conllu("\\n".join(line.replace(" ", "\\t") for line in lines))
      >>> found.text, found.ends.tolist(), found.governors.tolist(), found.relations
      ('I saw', [1, 5], [1, -1], ['nsubj', 'root'])
    """
    text, ends, governors, relations = "", [], [], []
    for line in block.splitlines():
        if line.startswith("#"):
            continue
        columns = line.split("\t")
        if len(columns) != 10:
            raise UserError(f"a CoNLL-U line has {len(columns)} columns and must have 10: {line[:60]!r}")
        if not columns[0].isdecimal():  # of a word written together, or one that is left out
            continue
        text += columns[1]
        ends.append(len(text))
        text += "" if "SpaceAfter=No" in columns[9] else " "
        relation = columns[7].split(":")[0]
        governors.append(-1 if relation in ("root", "punct") else int(columns[6]) - 1)
        relations.append(relation)
    return Parse(text.rstrip(), np.array(ends), np.array(governors), relations)


def _rows(path: Path, **options) -> list[dict[str, str]]:
    with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **options))


def _numbers(rows: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) if row[column] else math.nan for row in rows])
