"""Multiple-choice questions with 2 to 5 options: generated ones, and real ones from files."""

import json
import lzma
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.shared.real_data import data_folder

LETTERS = "ABCDE"
NAMES = ("Mary", "John", "Anna", "Peter", "Laura", "James", "Emma", "David", "Sarah", "Tom", "Alice", "Bob")
PLACES = ("school", "garden", "station", "hospital", "market", "office", "beach", "library")
THINGS = ("cup", "hat", "book", "ball", "lamp", "coat", "box", "pen", "bag", "clock", "chair", "bell")
COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "pink")


class Question(NamedTuple):
    """A question, its options in the order of the file, and which one is right."""

    text: str  # without its question mark
    options: tuple[str, ...]
    answer: int


def prompt(question: Question) -> str:
    """Return the paper's prompt, which ends where a letter follows.

    Examples:
      >>> prompt(Question("Which is red", ("the cup", "the hat"), 0))
      'Question: Which is red? Answer Choices: A: the cup B: the hat Answer:'
    """
    options = " ".join(f"{letter}: {text}" for letter, text in zip(LETTERS, question.options, strict=False))
    return f"Question: {question.text}? Answer Choices: {options} Answer:"


def letter_places(question: Question) -> list[int]:
    """Return where each option's letter stands in the prompt, in characters.

    Examples:
      >>> question = Question("Which is red", ("the cup", "the hat"), 0)
      >>> [prompt(question)[place] for place in letter_places(question)]
      ['A', 'B']
    """
    place, places = len(f"Question: {question.text}? Answer Choices: "), []
    for letter, text in zip(LETTERS, question.options, strict=False):
        places.append(place)
        place += len(f"{letter}: {text} ")
    return places


def rotations(question: Question) -> list[Question]:
    """Return the question with its right option at each place, A first: one an option.

    Examples:
      >>> [one.options for one in rotations(Question("?", ("no", "yes", "perhaps"), 1))]
      [('yes', 'perhaps', 'no'), ('no', 'yes', 'perhaps'), ('perhaps', 'no', 'yes')]
    """
    count = len(question.options)
    made = []
    for place in range(count):
        shift = question.answer - place
        options = tuple(question.options[(i + shift) % count] for i in range(count))
        made.append(Question(question.text, options, place))
    return made


def ioi(draw: np.random.Generator) -> Question:
    """Indirect object identification: who was given something, of two."""
    one, other = draw.choice(NAMES, 2, replace=False)
    place, thing = draw.choice(PLACES), draw.choice(THINGS)
    text = f"{one} and {other} went to the {place}. {one} gave a {thing} to"
    return _shuffled(draw, text, (other, one))


def order(draw: np.random.Generator) -> Question:
    """Logical deduction: which of three things in a row is at a place."""
    a, b, c = draw.choice(THINGS, 3, replace=False)
    place = draw.integers(3)
    asked = ("leftmost", "in the middle", "rightmost")[place]
    facts = [f"The {a} is left of the {b}.", f"The {b} is left of the {c}."]
    draw.shuffle(facts)
    row = (a, b, c)
    options = (row[place], *(x for x in row if x != row[place]))
    return _shuffled(draw, f"{' '.join(facts)} Which is {asked}", options)


def greater(draw: np.random.Generator) -> Question:
    """Greater than: which of four years, the last two digits asked for, is after another."""
    start = int(draw.integers(20, 90))
    after = int(draw.integers(start + 1, 100))
    before = draw.choice(np.arange(10, start), 3, replace=False)
    return _shuffled(draw, f"Which number is greater than {start}", (after, *before))


def kind(draw: np.random.Generator) -> Question:
    """Which of five words is of a kind: common sense for a small vocabulary."""
    kinds = {"person": NAMES, "place": PLACES, "thing": THINGS, "color": COLORS}
    asked, *_ = order = list(draw.permutation(list(kinds)))
    others = [draw.choice(kinds[name]) for name in order[1:]]
    others.append(draw.choice([word for word in kinds[order[1]] if word != others[0]]))
    return _shuffled(draw, f"Which is a {asked}", (draw.choice(kinds[asked]), *others))


GENERATED: dict[str, Callable[[np.random.Generator], Question]] = {
    "ioi": ioi, "order": order, "greater": greater, "kind": kind,
}  # fmt: skip


def _shuffled(draw, text, options) -> Question:
    """Return a question whose right option, given first, stands anywhere."""
    places = draw.permutation(len(options))
    return Question(text, tuple(str(options[i]) for i in places), int(np.argmin(places)))


def _json_lines(*parts: str) -> list[dict]:
    with lzma.open(data_folder("anchored_answers", *parts), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _authors_ioi() -> list[Question]:
    """The 45 prompts that the authors released, whose answer is always B: ask them with `rotations`."""
    rows = json.loads(data_folder("anchored_answers", "ioi_demo", "IOI.json").read_text(encoding="utf-8"))
    found = []
    for row in rows:
        text, a, b = re.fullmatch(
            r"Question: (.*)\? Answer Choices: A: (.*) B: (.*) Answer:", row["sentence"]
        ).groups()
        found.append(Question(text, (a, b), "AB".index(row["label"])))
    return found


def _deduction() -> list[Question]:
    """BIG-Bench Hard's logical deduction with three objects. Its canary says: for evaluation only."""
    path = data_folder("anchored_answers", "logical_deduction", "logical_deduction_three_objects.json.xz")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = json.load(file)["examples"]
    found = []
    for row in rows:
        text, options = row["input"].split("\nOptions:\n")
        text = text.partition("within each paragraph. ")[2]
        options = tuple(line.partition(") ")[2] for line in options.splitlines())
        found.append(Question(f"{text} Which is true", options, "ABC".index(row["target"][1])))
    return found


def _arc() -> list[Question]:
    rows = _json_lines("arc", "ARC-Easy.test.jsonl.xz")
    return [
        Question(row["question"].rstrip("?. "), tuple(row["choices"]), row["answer"])
        for row in rows
        if len(row["choices"]) == 4
    ]


def _commonsense() -> list[Question]:
    found = []
    for row in _json_lines("commonsenseqa", "dev_rand_split.jsonl.xz"):
        choices = row["question"]["choices"]
        options = tuple(choice["text"] for choice in choices)
        answer = [choice["label"] for choice in choices].index(row["answerKey"])
        found.append(Question(row["question"]["stem"].rstrip("?. "), options, answer))
    return found


REAL = {"ioi": _authors_ioi, "deduction": _deduction, "arc": _arc, "commonsense": _commonsense}
REAL_SETS = (*REAL, "greater")  # the paper's five tasks; greater-than is generated


def generated_sets(names, count: int, seed: int) -> dict[str, list[Question]]:
    """Return {name: `count` different questions} that a seed draws."""
    draw = np.random.default_rng([seed, 20])
    sets = {}
    for name in names:
        made: dict[tuple, Question] = {}
        while len(made) < count:
            question = GENERATED[name](draw)
            made[question.text, tuple(sorted(question.options))] = question
        sets[name] = list(made.values())
    return sets


def real_sets(count: int, seed: int, longest: int = 260) -> dict[str, list[Question]]:
    """Return {name: `count` questions} of the paper's tasks, drawn by a seed.

    Args:
      longest: characters of a prompt; what is longer is left out.

    Raises:
      UserError: the files are not there (`real_data.data_folder`).
    """
    draw, sets = np.random.default_rng([seed, 21]), {}
    for name, read in REAL.items():
        fitting = [question for question in read() if len(prompt(question)) <= longest]
        sets[name] = [fitting[i] for i in draw.permutation(len(fitting))[:count]]
    return sets | generated_sets(["greater"], count, seed)
