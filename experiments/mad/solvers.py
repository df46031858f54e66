"""Solvers of MAD's tasks that learn nothing from gradients: by looking things up, or by what came most often.

They say what a task's test can give: looking up reaches all of it, but for facts that training never
showed; the value that came most often in a sequence is what a model reaches that has not learned to recall.
"""

import collections

import numpy as np

from jaxllm.synthetic import IGNORED, Instances, MadTask
from jaxllm.synthetic.fuzzy_recall import LONGEST


def accuracy(instances: Instances, said_NT: np.ndarray) -> float:
    """Return the share of counted targets that are said right."""
    counted_NT = instances.targets_NT != IGNORED
    return float(np.mean(said_NT[counted_NT] == instances.targets_NT[counted_NT]))


def look_up(task: MadTask, train: Instances, inputs_NT: np.ndarray) -> np.ndarray:
    """Return what follows from the inputs read so far, and from training's facts; -1 where nothing does."""
    match task.name:
        case "memorisation":
            known = np.full(task.vocab_size, -1)
            known[train.inputs_NT[:, ::2]] = train.targets_NT[:, 1::2]
            said_NT = np.full_like(inputs_NT, -1)
            said_NT[:, 1::2] = known[inputs_NT[:, ::2]]
            return said_NT
        case "selective_copying":
            said_NT = np.full_like(inputs_NT, -1)
            for said_T, inputs_T in zip(said_NT, inputs_NT, strict=True):
                said_T[-task.copied :] = inputs_T[inputs_T < task.keys]
            return said_NT
        case "compression":
            return inputs_NT
        case "fuzzy_recall":
            return np.array([_fuzzy(task, row) for row in inputs_NT.tolist()])
    return np.array([_recall(task, row) for row in inputs_NT.tolist()])


def most_frequent(task: MadTask, inputs_NT: np.ndarray) -> np.ndarray:
    """Return the id of a value that was read most often up to each position, the latest of several; or -1."""
    said_NT = np.full_like(inputs_NT, -1)
    first = 0 if task.name in ("selective_copying", "compression") else task.keys
    values = range(first, first + task.values)
    for said_T, inputs_T in zip(said_NT, inputs_NT.tolist(), strict=True):
        counts: collections.Counter = collections.Counter()
        best = -1
        for at, token in enumerate(inputs_T):
            if token in values:
                counts[token] += 1
                best = token if counts[token] >= counts[best] else best
            said_T[at] = best
    return said_NT


def _recall(task: MadTask, tokens: list[int]) -> list[int]:
    value_of, said, key = {}, [], None
    for token in tokens:
        if key is not None:
            value_of[key] = token
        key = token if token < task.keys else None
        said.append(value_of.get(key, -1))
    return said


def _fuzzy(task: MadTask, tokens: list[int]) -> list[int]:
    """Follow keys of the longest length, as a test's are, so that where one ends is known."""
    value_of, said, key, value = {}, [], (), ()
    for token in tokens:
        if token < task.keys:
            if value:
                value_of[key] = value
                key, value = (), ()
            key += (token,)
        elif token < task.keys + task.values:
            value += (token,)
        known = value_of.get(key, ()) if len(key) == LONGEST else ()
        said.append(known[len(value)] if value == known[: len(value)] and len(value) < len(known) else -1)
    return said
