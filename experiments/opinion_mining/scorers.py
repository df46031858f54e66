"""Scorers of polarity for real texts: VADER's lexicon, and a head of three labels trained here on MiniLM."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.shared.few_shot_tasks import load_dataset
from experiments.shared.real_data import data_folder
from jaxllm.data import Labelled
from jaxllm.errors import UserError
from jaxllm.measures import CLASSES, Lexicon, load_vader, parse_lexicon
from jaxllm.optim import OptimConfig
from jaxllm.pretrained import fetch_minilm, from_pretrained
from jaxllm.text import LabelConfig, Labeller, train_labels

Classify = Callable[[Sequence[str]], np.ndarray]


def lexicon() -> Lexicon:
    """Return VADER's lexicon, of the package vaderSentiment or of JAXLLM_DATA.

    Raises:
      UserError: neither has it.
    """
    try:
        return load_vader()
    except UserError:
        path = data_folder("text_classification", "nltk", "vader_lexicon.zip")
        with zipfile.ZipFile(path) as content:
            return parse_lexicon(content.read("vader_lexicon/vader_lexicon.txt").decode(), f"'{path}'")


def scorer_texts(count: int, seed: int) -> tuple[Labelled, Labelled]:
    """Return texts to train a scorer on and to measure its mistakes with, `count` and a third of it a class.

    Polar ones are sentences of film reviews and of customers' reviews, neutral ones sentences of plots.
    """
    draw = np.random.default_rng([seed, 50])
    parts = {name: load_dataset(name, 40) for name in ("mr", "cr", "subj")}
    rows: tuple[list, list] = ([], [])
    for kind, rows_of_class in (
        ("negative", [(n, 0) for n in ("mr", "cr")]), ("positive", [(n, 1) for n in ("mr", "cr")]),
        ("neutral", [("subj", 0)]),
    ):  # fmt: skip
        for part, size, source in zip(rows, (count, count // 3), ("pool", "queries"), strict=True):
            texts = [t[0] for n, label in rows_of_class for t, y in getattr(parts[n], source) if y == label]
            part += [(texts[i], kind) for i in draw.permutation(len(texts))[:size]]
    return tuple(Labelled(*map(list, zip(*part, strict=True))) for part in rows)


def trained_scorer(steps: int, out: Path, seed: int = 0) -> tuple[Labeller, np.ndarray]:
    """Return (MiniLM with a head of `CLASSES`, its confusion on texts it did not see: counts [3, 3])."""
    examples, held_out = scorer_texts(1500, seed)
    run = LabelConfig(
        steps=steps, batch_size=16, longest=48, labels=CLASSES, eval_every=steps, save_every=steps,
        keep_best=0, keep_last=1, optim=OptimConfig(learning_rate=5e-5, warmup_steps=max(1, steps // 10),
        weight_decay=0.01), progress=False, seed=seed, out=str(out),
    )  # fmt: skip
    labeller = train_labels(run, examples, held_out, start=tuple(from_pretrained(fetch_minilm()))).labeller
    return labeller, confusion(classify_with(labeller), held_out)


def classify_with(labeller: Labeller) -> Classify:
    """Return a labeller as a function of texts to places in `CLASSES`."""
    return lambda texts: np.array([row.argmax() for row in labeller.log_probs([t or " " for t in texts])])


def confusion(classify: Classify, labelled: Labelled) -> np.ndarray:
    """Return counts [3, 3]: row, the class of a text; column, what is said of it."""
    found = np.zeros((3, 3), int)
    gold = [CLASSES.index(label) for label in labelled.labels]
    np.add.at(found, (gold, classify(labelled.texts)), 1)
    return found
