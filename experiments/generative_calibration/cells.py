"""One few-shot prompt, measured once: every label probability that any calibrator needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.shared.few_shot_tasks import Dataset, Row
from jaxllm import score
from jaxllm.generate import Decoder
from jaxllm.kept_result import kept_result


def draw_exemplars(data: Dataset, shots: int, seed: int, counts: tuple[int, ...] | None = None) -> list[Row]:
    """Return exemplars drawn with replacement: from all rows (the paper's way), or so many of each label."""
    random = np.random.default_rng([seed, shots])
    if counts is None:
        return [data.pool[i] for i in random.integers(0, len(data.pool), shots)]
    of_label = [[row for row in data.pool if row[1] == label] for label in range(len(data.task.labels))]
    drawn = [
        rows[i] for rows, n in zip(of_label, counts, strict=True) for i in random.integers(0, len(rows), n)
    ]
    return [drawn[i] for i in random.permutation(len(drawn))]


def draw_queries(data: Dataset, count: int, seed: int) -> list[Row]:
    """Return inputs to classify, without replacement, as many of each label as there are of any other."""
    random = np.random.default_rng([seed, 7])
    order = [data.queries[i] for i in random.permutation(len(data.queries))]
    labels = len(data.task.labels)
    return [row for y in range(labels) for row in [r for r in order if r[1] == y][: count // labels]]


def measure_prompt(
    decoder: Decoder, tokenizer, data: Dataset, exemplars: list[Row], *, queries: int, samples: int,
    sample_rows: int, max_new_tokens: int, fillers: int, channel: bool, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the label log-probabilities of one prompt, as lists.

    queries [N, Y] and their gold labels [N]; content_free [3, Y]; random_words [F, Y]; samples [L, Y] with
    their lengths and how many were rejected; channel [N, Y], log p(x | y).
    """
    rows = draw_queries(data, queries, seed)
    inputs = [values for values, _ in rows]
    prompt = score.FewShotPrompt(decoder, tokenizer, data.task, exemplars)
    free = score.content_free_inputs(data.task)
    words = score.random_word_inputs(inputs, fillers, seed) if fillers else []
    log_probs = prompt.label_log_probs([*inputs, *free, *words])
    drawn = score.sample_inputs(
        prompt, samples, key=jax.random.key(seed), max_new_tokens=max_new_tokens, rows=sample_rows
    )
    found = {
        "gold": [label for _, label in rows],
        "queries": log_probs[: len(rows)], "content_free": log_probs[len(rows) :][: len(free)],
        "random_words": log_probs[len(rows) + len(free) :], "samples": drawn.log_probs_LY,
        "lengths": [len(ids) for ids in drawn.tokens], "rejected": drawn.rejected, "texts": drawn.texts[:3],
        "exemplar_labels": [label for _, label in exemplars],
    }  # fmt: skip
    if channel:
        by_label = score.FewShotPrompt(decoder, tokenizer, data.task, exemplars, channel=True)
        found["channel"] = by_label.channel_log_probs(inputs)
    return {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in found.items()}


def measure_neutral(decoder: Decoder, tokenizer, data: Dataset) -> dict[str, Any]:
    """Return the label log-probabilities after the label's field alone, without exemplars: neutral [1, Y]."""
    prompt = score.FewShotPrompt(decoder, tokenizer, data.task, [])
    ids = tokenizer.encode(data.task.neutral_query()).tolist()
    return {"neutral": prompt.label_log_probs_of_ids([ids]).tolist()}


def keep_measured(
    path: Path, measure: Callable, load: Callable, data: Dataset, *exemplars, **options
) -> dict[str, Any]:
    """Return what `measure(decoder, tokenizer, data, *exemplars, **options)` says, or said with all the same.

    Args:
      path: the file that keeps it.
      measure: one of the functions above.
      load: returns (decoder, tokenizer); only called where something is to be measured.
      data: the task.
      exemplars: as `measure` takes them.
      options: those of `measure`, and `model`, a name that stands for the weights.
    """
    size = {name: value for name, value in options.items() if name != "model"}
    return kept_result(
        path, lambda: measure(*load(), data, *exemplars, **size), what=measure.__name__,
        data=data.fingerprint, exemplars=exemplars, **options,
    )  # fmt: skip


def calibrated(found: dict[str, Any], methods: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """Return the calibrated log-probabilities [N, Y] of each method that a measured prompt allows."""
    queries = np.array(found["queries"])
    estimate = score.estimate_prior
    ways = {
        "icl": lambda: (queries, None),
        "contextual": lambda: (queries, estimate(found["content_free"])),
        "domain": lambda: (queries, estimate(found["random_words"], transductive=True)),
        "pmi": lambda: (queries, estimate(found["neutral"])),
        "batch": lambda: (queries, estimate(queries, normalise_each=True, transductive=True)),
        "prototypical": lambda: (queries, score.fit_prototypes(queries, transductive=True)),
        "generative": lambda: (queries, estimate(found["samples"])),
        "generative_normalised": lambda: (queries, estimate(found["samples"], normalise_each=True)),
        "channel": lambda: (np.array(found["channel"]), score.uniform_prior(queries.shape[1])),
    }
    needs = {"domain": "random_words", "pmi": "neutral", "channel": "channel"}
    after = {}
    for name in methods or ways:
        if needs.get(name, "queries") in found and len(found[needs.get(name, "queries")]):
            log_probs, prior = ways[name]()
            after[name] = score.CALIBRATORS[name.removesuffix("_normalised")](log_probs, prior)
    return after
