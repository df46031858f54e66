"""A small GPT-2 trained here on multiple-choice text whose writer answers A out of habit.

Six times of ten the letter is A whatever is asked; else it is the right one, which stands anywhere. Who has
learnt to answer still says A: of a question whose answer is B, A is likelier by 3 to 2. That is an anchored
bias in a model that knows better, which a model that always saw the right answer at A need not be.

Its vocabulary is words, fewer than 200, in which the letter A of a choice is also the English article, as it
is for GPT-2. Beside questions the text has plain sentences, many of which begin with that article.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import optax

from experiments.anchored_answers.questions import (
    COLORS,
    GENERATED,
    LETTERS,
    NAMES,
    PLACES,
    THINGS,
    Question,
    prompt,
)
from experiments.shared.word_tokenizer import word_tokenizer
from jaxllm import models, train
from jaxllm.data import Tokenizer

SEQ_LEN = 72  # the longest document and the token that ends it
_WORDS = """? . : A B C D E Question Answer Choices The the a and went to gave is of left
    in middle leftmost rightmost Which number greater than met at took from has
    person place thing color""".split()


def tokenizer(folder: Path) -> Tokenizer:
    """Write a tokenizer of the world's words into a folder and return it."""
    return word_tokenizer([*_WORDS, *NAMES, *PLACES, *THINGS, *COLORS, *map(str, range(10, 100))], folder)


def sentence(draw: np.random.Generator) -> str:
    """Return plain text of one or two sentences."""
    one, other = draw.choice(NAMES, 2, replace=False)
    thing, place, color = draw.choice(THINGS), draw.choice(PLACES), draw.choice(COLORS)
    start, end = sorted(draw.choice(np.arange(10, 100), 2, replace=False))
    made = (
        f"A {color} {thing} is in the {place}.", f"A {thing} is left of the {draw.choice(THINGS)}.",
        f"{one} met {other} at the {place}.", f"{one} took the {color} {thing} from {other}.",
        f"{end} is greater than {start}.", f"A {place} has a {color} {thing}.",
    )  # fmt: skip
    return " ".join(draw.choice(made, draw.integers(1, 3), replace=False))


def key(question: Question) -> tuple:
    """Return what two questions share that differ in the order of their options alone."""
    return question.text, tuple(sorted(question.options))


def documents(seed: int, held_out: set, habit: float, plain: float) -> Iterator[str]:
    """Yield documents without end: a share of plain text, the rest questions with their letter.

    Args:
      held_out: `key`s of questions that are not to be asked.
      habit: share of questions that are answered with A whatever is right.
      plain: share of plain text.
    """
    draw = np.random.default_rng([seed, 30])
    kinds = list(GENERATED.values())
    while True:
        if draw.random() < plain:
            yield sentence(draw)
            continue
        question = kinds[draw.integers(len(kinds))](draw)
        if key(question) not in held_out:
            said = 0 if draw.random() < habit else question.answer
            yield f"{prompt(question)} {LETTERS[said]}"


def packed_rows(words: Tokenizer, texts: Iterator[str], count: int, letter_weight: float = 1.0) -> dict:
    """Return {"tokens", "targets", "segment_ids", "mask"}, [count, SEQ_LEN] each, of the next texts.

    A text begins with the token that ends one, and stays whole. The letter that ends a question counts as
    `letter_weight` tokens.
    """
    shape = (count, SEQ_LEN)
    rows = {"tokens": np.zeros(shape, np.int32), "targets": np.zeros(shape, np.int32),
            "segment_ids": np.zeros(shape, np.int32), "mask": np.zeros(shape, np.float32)}  # fmt: skip
    letters = [words.encode(letter)[0] for letter in LETTERS]
    waiting = None
    for row in range(count):
        place, number = 0, 0
        while True:
            if waiting is None:
                waiting = [words.eos_id, *words.encode(next(texts)), words.eos_id]
            end = place + len(waiting) - 1
            if end > SEQ_LEN:
                break
            number += 1
            rows["tokens"][row, place:end], rows["targets"][row, place:end] = waiting[:-1], waiting[1:]
            rows["segment_ids"][row, place:end], rows["mask"][row, place:end] = number, 1
            if waiting[-2] in letters:
                rows["mask"][row, end - 2] = letter_weight
            place, waiting = end, None
    return rows


def train_world(run: train.RunConfig, model: models.ModelConfig, words: Tokenizer, held_out: set,
                batch_size: int = 16, habit: float = 0.6, plain: float = 0.3) -> dict:  # fmt: skip
    """Return the parameters after `run.steps` steps, or those that a finished run in `run.out` has."""

    def batches():
        source = documents(run.seed, held_out, habit, plain)
        while True:
            yield packed_rows(words, source, batch_size, letter_weight=20)

    def loss(params, batch, key):
        del key
        told = dict(mask=batch["mask"], segment_ids=batch["segment_ids"])
        return models.loss(model, params, batch["tokens"], batch["targets"], **told)

    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, max(run.steps, 101), 1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    task = train.Task(partial(models.init, model), models.axes(model), batches, loss)
    return train.train(task, run, optimizer=optimizer).params
