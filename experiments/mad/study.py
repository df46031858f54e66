"""The cells of MAD's study: each arm on each task with each seed, trained once and kept.

Arms are parts, hand-made mixtures, hybrids under several searches, hybrids whose mixtures are given, and
parts made so wide that they have as many parameters, or cost as many FLOPs, as the hybrid of two blocks.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

from experiments.grid import code_digest
from experiments.mad.arms import HAND_MADE, PARTS, Sizes, part, wide_part
from experiments.mad.hybrids import hybrid, mixture_of, rounded, with_given
from experiments.mad.training import (
    accuracy_of,
    counted_log_probs,
    drawn,
    mad_arrays,
    solver,
    training_task,
)
from experiments.shared.epochs import epochs, prepare_epochs, train_epochs
from experiments.shared.equal_size import EQUAL
from experiments.shared.mixture_searches import SEARCHES, Search, make_optimizer
from jaxllm.config import Config, Count, NotNegative, Positive
from jaxllm.errors import UserError
from jaxllm.kept_result import kept_result
from jaxllm.models import HybridConfig, LanguageModel
from jaxllm.synthetic import MadTask
from jaxllm.train import Run, to_dict

BLOCKS = (1, 2)
HYBRIDS = tuple(f"hybrid {blocks}" for blocks in BLOCKS)
WIDE = tuple(f"{name}, equal {what}" for name in PARTS for what in EQUAL)
TRAINED = (*PARTS, *HAND_MADE, *HYBRIDS, *WIDE)  # on every task
# Attention's share in the hybrid of one block, frozen; the ends of the sweep are the parts.
SWEEP = {f"alpha {share:g}": share for share in (0.25, 0.5, 0.75)}
_GAEA = 10.0  # times the rate of other searches, as the paper's runs have it
_DECISIVE = (  # modules that a cell comes from
    *(f"mad/{name}.py" for name in ("arms", "hybrids", "study", "training")),
    *(f"shared/{name}.py" for name in ("epochs", "equal_size", "mixture_searches")),
)
FIRST_HALF = "alternating, first half"  # weights see what they see beside a held-out half
GIVEN = ("uniform", "random", "searched", "programmed")  # mixtures that are frozen while all else is trained


@dataclass(frozen=True)
class Training(Config):
    """How every cell is trained."""

    steps: Count = 500  # of the weights
    batch_size: Count = 32
    points: Count = 10  # evaluations on the way
    learning_rate: Positive = 3e-3  # let down to 1e-6 by a cosine
    mixture_rate: Positive = 1e-2
    weight_decay: NotNegative = 0.0  # of mixtures there is none


class Study:
    """Trains cells and keeps them in a folder."""

    def __init__(self, tasks: dict[str, MadTask], sizes: Sizes, training: Training, out: str):
        self.tasks, self.sizes, self.training, self.out = tasks, sizes, training, Path(out)

    def model(self, task: MadTask, arm: str) -> LanguageModel:
        """Return an arm's model; searches and given mixtures are of the hybrid of two blocks."""
        if arm in PARTS or arm in HAND_MADE:
            return part(arm, self.sizes, task.vocab_size, task.length)
        parts = [part(name, self.sizes, task.vocab_size, task.length) for name in PARTS]
        if arm in WIDE:
            name, _, what = arm.partition(", equal ")
            return wide_part(name, self.sizes, task.vocab_size, task.length, hybrid(parts, 2), what)
        return hybrid(parts, 1 if arm == "hybrid 1" or arm in SWEEP else 2)

    def run(self, name: str, arm: str, seed: int, mixture: np.ndarray | None = None) -> dict[str, Any]:
        """Return what came of an arm on a task: its curve, sizes and seconds, and its mixture if it has one.

        Args:
          mixture: [blocks, parts], frozen; None: it is searched, if there is one.
        """
        task = self.tasks[name]
        model, file = self.model(task, arm), self.file(name, arm, seed)
        twin = arm.replace("FLOPs", "parameters")
        if twin != arm and model == self.model(task, twin):
            return self.run(name, twin, seed)

        def measure():
            return self._train(task, model, arm, seed, mixture, file.with_suffix(".npy"))

        given = None if mixture is None else np.round(mixture, 6).tolist()
        decisive = dict(task=to_dict(task), model=repr(model), training=to_dict(self.training), arm=arm,
                        seed=seed, mixture=given, code=code_digest(*_DECISIVE))  # fmt: skip
        return kept_result(file, measure, **decisive)

    def file(self, name: str, arm: str, seed: int) -> Path:
        """Return where a cell is kept; beside it, of parts, what they say of the test."""
        return self.out / "cells" / f"{name}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"

    def ensemble(self, name: str, seed: int) -> float:
        """Return the accuracy of the mean of the parts' probabilities; the parts must have been run."""
        said = [np.load(self.file(name, one, seed).with_suffix(".npy")) for one in PARTS]
        test = mad_arrays(self.tasks[name], "test", seed)
        targets = test["targets"][test["targets"] >= 0]
        return float(np.mean(np.logaddexp(*said).argmax(axis=-1) == targets))

    def _train(self, task, model, arm, seed, mixture, probs_file):
        mixed = isinstance(model, HybridConfig)
        search = search_of(arm) if mixed and mixture is None else None
        train, test = (mad_arrays(task, one, seed) for one in ("train", "test"))
        if arm == FIRST_HALF:
            train = {name: x[: len(x) // 2] for name, x in train.items()}
        decoder = task.name == "compression"
        solves = solver(model, decoder)
        start = drawn(solves, seed)
        if mixture is not None:
            start = with_given(start, mixture)

        def measure(params):
            found = {"accuracy": accuracy_of(solves, params, test)}
            return found | ({"mixture": mixture_of(params).tolist()} if mixed else {})

        draw = search.batches if search else epochs
        begun, seconds = time.process_time(), time.perf_counter()
        params, curve = train_epochs(
            prepared_run(model, decoder, self.training, search), start,
            lambda: draw(train, self.training.batch_size, seed), measure, seed,
        )  # fmt: skip
        if params is None:
            raise UserError(
                f"{arm} on {task.name} diverged with seed {seed}: its loss or its mixture was no number any "
                "more; lower training.learning_rate or training.mixture_rate"
            )
        found = {
            "curve": curve, "accuracy": curve[-1]["accuracy"],
            "parameters": model.num_params, "flops": model.flops_per_token(task.length),
            "seconds": time.perf_counter() - seconds, "cpu_seconds": time.process_time() - begun,
        }  # fmt: skip
        if mixed:
            found["one_hot_accuracy"] = accuracy_of(solves, rounded(params), test)
        if arm in PARTS:
            probs_file.parent.mkdir(parents=True, exist_ok=True)
            np.save(probs_file, counted_log_probs(solves, params, test))
        return found


def search_of(arm: str) -> Search:
    """Return how an arm searches its mixture: simultaneously, if it is not called otherwise."""
    return SEARCHES.get(arm.partition(",")[0], SEARCHES["simultaneous"])


@functools.cache
def prepared_run(model: LanguageModel, decoder: bool, training: Training, search: Search | None) -> Run:
    """Return a run that all seeds share, and all tasks of one length and vocabulary.

    Args:
      decoder: see `solver`.
      search: of a hybrid's mixture; None: it stays as it is.
    """
    solves = solver(model, decoder)
    steps = training.steps * (2 if search and search.alternating else 1)  # weights rest at odd ones
    return prepare_epochs(
        training_task(solves, training.batch_size, model.context_length), steps=steps,
        measure_every=max(1, steps // training.points),
        optimizer=study_optimizer(model, solves.axes, training, search),
        views=search.views(solves.axes) if search else (),
    )  # fmt: skip


def study_optimizer(
    model: LanguageModel, axes: Any, training: Training, search: Search | None
) -> optax.GradientTransformation:
    """Return AdamW under a cosine, and the search's of a mixture."""
    rate = optax.cosine_decay_schedule(training.learning_rate, training.steps, 1e-6 / training.learning_rate)
    weights = optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=training.weight_decay)
    times = _GAEA if search == SEARCHES["GAEA"] else 1
    return make_optimizer(weights, model, axes, search, times * training.mixture_rate)
