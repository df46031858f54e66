"""Cells of the study of predictive writing: replays by source, recorded answers, users, disturbances."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from experiments.predictive_writing.texts import Lines, Person
from jaxllm.write import (
    Isotonic,
    Lexicon,
    ModelSource,
    Proposal,
    Replayed,
    Suggestion,
    User,
    Writer,
    WriterConfig,
    fit_isotonic,
    replay,
    threshold,
)
from jaxllm.write.words import at_caret

COUNTED = ("trie", "ngram", "char")


class Pilot:
    """The pilot's ranking: words after the longest context that was seen, then after shorter ones."""

    def __init__(self, shared: Lexicon):
        self._shared = shared

    def suggest(self, text: str, count: int, proposals: Sequence[Proposal] = ()) -> list[Suggestion]:
        caret = at_caret(text)
        words = self._shared.grams.longest_match(caret.words, caret.prefix, count + 1)
        rests = [(word, word[len(caret.prefix) :]) for word in words if len(word) > len(caret.prefix)]
        return [Suggestion(f"{rest} ", 1.0, "pilot", word, 1.0) for word, rest in rests[:count]]

    def accepted(self, text, suggestion):
        pass

    rejected = learn = accepted


def count_lines(lines: Sequence[str], order: int = 4) -> Lexicon:
    """Return what is known of lines."""
    lexicon = Lexicon(order)
    for line in tqdm(lines, desc="counting", unit="line", delay=2, leave=False):
        lexicon.learn(line)
    return lexicon


def by_line(writer, lines: Sequence[str], **options) -> tuple[Replayed, list[float]]:
    """Return (a replay, the keys that it saved on each line)."""
    total, saved = Replayed(), []
    for line in lines:
        one = replay(writer, [line], **options)
        total = total + one
        saved.append(one.characters - one.keys)
    return total, saved


def compare(
    shared: Lexicon, lines: Sequence[str], arms: dict[str, WriterConfig], shown: Sequence[int], propose=None,
    calibration=None,
) -> dict[str, dict]:  # fmt: skip
    """Return the figures and the saved keys a line of each arm and number shown."""
    found = {}
    for name, config in tqdm(arms.items(), desc="arms", unit="arm", leave=False):
        for count in shown:
            writer = Writer(shared, User.new(day=0), config, calibration or {})
            asked = propose if "model" in config.sources else None
            total, saved = by_line(writer, lines, count=count, propose=asked)
            found[f"{name}/{count}"] = total.figures() | {"saved": saved}
    return found


def record(source: ModelSource, lines: Sequence[str]) -> dict[str, list]:
    """Return what a model says at every place of lines typed key by key, the milliseconds and its calls.

    Replays of any sources and budgets read these answers: they depend on the text alone.
    """
    answers = {}
    session = source.session()
    for line in tqdm(lines, desc="recording the model", unit="line", leave=False):
        for end in range(len(line)):
            begin, calls = time.perf_counter(), session.calls
            proposals = session.propose(line[:end])
            milliseconds = 1000 * (time.perf_counter() - begin)
            said = [[list(one.words), one.chance] for one in proposals]
            answers[line[:end]] = [said, milliseconds, session.calls - calls]
    return answers


def answering(answers: dict[str, list], budget_ms: float | None = None) -> Callable[[str], list[Proposal]]:
    """Return a source that gives recorded answers; those that took longer than a budget are not there."""

    def propose(text: str) -> list[Proposal]:
        said, milliseconds, _ = answers[text]
        if budget_ms is not None and milliseconds > budget_ms:
            return []
        return [Proposal(tuple(words), chance) for words, chance in said]

    return propose


def outcomes(writer: Writer, lines: Sequence[str], propose=None) -> dict[str, list[tuple[float, bool]]]:
    """Return (chance, whether it came) of each source's first word at every place of lines typed in full."""
    found: dict[str, list] = {}
    for line in lines:
        for end in range(len(line)):
            caret = at_caret(line[:end])
            begin = end - len(caret.prefix)
            comes = line[begin:].split()[0].lower() if line[begin:].strip() else ""
            for name, own in writer.scores(caret, propose(line[:end]) if propose else ()).items():
                if own:
                    word, chance = max(own.items(), key=lambda one: one[1])
                    found.setdefault(name, []).append((min(chance, 1.0), word == comes))
    return found


def calibrate(pairs: dict[str, list[tuple[float, bool]]]) -> dict[str, Isotonic]:
    """Return a rising line of each source."""
    return {name: fit_isotonic(*zip(*some, strict=True)) for name, some in pairs.items() if len(some) > 50}


def calibration_error(pairs: Sequence[tuple[float, bool]], line: Isotonic | None = None) -> float:
    """Return the expected calibration error of chances, or of what a line makes of them."""
    chances = np.array([line(chance) if line else chance for chance, _ in pairs])
    hits = np.array([hit for _, hit in pairs], float)
    place = np.minimum((chances * 10).astype(int), 9)
    bins = [place == n for n in set(place)]
    return float(sum(abs(chances[one].mean() - hits[one].mean()) * one.mean() for one in bins))


def chosen_threshold(writer: Writer, lines: Sequence[str], precision: float, propose=None) -> float:
    """Return the threshold at which first suggestions of lines typed in full have a precision."""
    chances, hits = [], []
    for line in lines:
        for end in range(len(line)):
            for one in writer.suggest(line[:end], 1, propose(line[:end]) if propose else ()):
                chances.append(one.chance)
                hits.append(line.startswith(one.first.rstrip(), end))
    return threshold(chances, hits, precision)


def chosen_weights(shared: Lexicon, lines: Sequence[str], propose) -> tuple[tuple[str, float], ...]:
    """Return the sources' weights: the model's is the one of five that saves most keys on other lines."""

    def weights(model):
        return (("trie", 0.1), ("ngram", 0.5), ("model", model))

    def saved(model):
        writer = Writer(shared, User.new(day=0), WriterConfig(weights=weights(model)))
        return sum(by_line(writer, lines, propose=propose)[1])

    return weights(max((0.05, 0.2, 0.5, 1.0, 2.0), key=saved))


def personal_curves(
    shared: Lexicon, people: Sequence[Person], drift: int, block: int, kappa: float
) -> dict[str, list[list[float]]]:
    """Return the saving rate of each person, block by block of notes: without and with their own words.

    A block is a day. "fading" forgets a fifth a day, for the sake of those who change their habits.
    """
    arms = {"shared": (False, 1.0), "personal": (True, 1.0), "fading": (True, 0.8)}
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for person in tqdm(people, desc="people", unit="person", leave=False):
        for name, (personal, share) in arms.items():
            writer = Writer(shared, User.new(day=0), WriterConfig(COUNTED, personal=personal, kappa=kappa))
            rates = []
            for day, at in enumerate(range(0, len(person.notes), block)):
                writer.user.fade(share, day)
                one = replay(writer, person.notes[at : at + block], learn=personal, feedback=personal)
                rates.append(one.figures()["saving_rate"])
            found[name].append(rates)
    return found


def leaks(shared: Lexicon, people: Sequence[Person], kappa: float) -> dict[str, int]:
    """Return how often private strings are suggested to their owners, and to anybody else."""
    writers = []
    for person in people:
        writer = Writer(shared, User.new(day=0), WriterConfig(COUNTED, kappa=kappa))
        for note in person.notes:
            writer.learn(note)
        writers.append(writer)
    counts = {"to_owners": 0, "to_others": 0, "asked": 0}
    for owner, person in enumerate(people):
        before = person.notes[-1].rpartition(" ")[0]
        for number, writer in enumerate(writers):
            for end in range(len(person.private)):
                for text in (f"{before} {person.private[:end]}", person.private[:end]):
                    shown = writer.suggest(text, 3)
                    hit = any(one.word == person.private for one in shown)
                    counts["to_owners" if number == owner else "to_others"] += hit
                    counts["asked"] += number != owner
    return counts


def disturbed(shared: Lexicon, versions: dict[str, list[str]]) -> dict[str, dict]:
    """Return the figures of lines typed with errors, odd words, in mixed case, and of first words alone."""
    return {
        name: compare(shared, lines, {"counts": WriterConfig(COUNTED)}, (1,))["counts/1"]
        for name, lines in versions.items()
    }


def first_words(lines: Lines) -> list[str]:
    """Return the first word of each line that is typed: an empty context."""
    return [line.split()[0] for line in lines.test]
