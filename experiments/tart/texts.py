"""Real texts of TART's study: tasks, the examples and test items of a seed, and what models make of them.

Every text is embedded once and every prompt is read once: both are kept in OUT/cells under a key of
everything that decides them, so that a study which was interrupted goes on.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.shared.few_shot_tasks import Dataset, Row, load_dataset
from jaxllm import score
from jaxllm.generate import Decoder
from jaxllm.in_context import embed_in_prompt, embed_leave_one_out
from jaxllm.kept_result import kept_result
from jaxllm.retrieve import Encoder

# Two labels of a data set that has more, as a task of two classes.
PAIRS = {"snli2": ("snli", ("entailment", "contradiction")), "bank2": ("bank", ("refund", "identity"))}
_TEST = 3  # of the seeds that draw test items


def load_task(source: str, most_words: int) -> Dataset:
    """Return a data set by the names of `load_dataset` and of `PAIRS`."""
    if source not in PAIRS:
        return load_dataset(source, most_words)
    whole, labels = PAIRS[source]
    data = load_dataset(whole, most_words)
    kept = {data.task.labels.index(label): number for number, label in enumerate(labels)}
    pool, queries = (
        [(texts, kept[label]) for texts, label in rows if label in kept] for rows in (data.pool, data.queries)
    )
    return Dataset(source, dataclasses.replace(data.task, labels=labels), pool, queries)


def draw_test(data: Dataset, count: int) -> list[Row]:
    """Return test items, as many of each class, the same for all seeds."""
    return _balanced(data.queries, count, len(data.task.labels), np.random.default_rng(_TEST))


def draw_pool(data: Dataset, count: int) -> list[Row]:
    """Return the labelled texts that examples of all seeds are drawn from, as many of each class."""
    return _balanced(data.pool, count, len(data.task.labels), np.random.default_rng([_TEST, 1]))


def draw_examples(labels_P: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return which of the pool are a seed's examples, in their order: shuffled, as many of each class.

    The first k of them are the examples of a smaller study, about as balanced.
    """
    draw = np.random.default_rng([seed, 2])
    queues = [list(draw.permutation(np.flatnonzero(labels_P == label))) for label in np.unique(labels_P)]
    chosen: list[int] = []
    while len(chosen) < count:  # a round of one of each class, in an order of its own
        chosen += [queues[label].pop() for label in draw.permutation(len(queues)) if queues[label]]
    return np.array(chosen[:count])


def _balanced(rows: list[Row], count: int, classes: int, draw: np.random.Generator) -> list[Row]:
    seen: set[str] = set()
    left = []
    for at in draw.permutation(len(rows)):
        if " ".join(rows[at][0]) not in seen:
            seen.add(" ".join(rows[at][0]))
            left.append(rows[at])
    found = [
        row for label in range(classes) for row in [r for r in left if r[1] == label][: count // classes]
    ]
    return [found[i] for i in draw.permutation(len(found))]


def keep_vectors(path: Path, load, name: str, rows: list[Row], most_tokens: int) -> np.ndarray:
    """Return the vectors of texts by themselves, float32 [N, D] ("stream"); a pair of texts is joined."""
    texts = [" ".join(values) for values, _ in rows]

    def measure():
        encoder = Encoder(*load(), longest=most_tokens, normalize=False)
        return {"vectors": _listed(encoder.embed(texts))}

    found = kept_result(path, measure, model=name, texts=texts, most_tokens=most_tokens)
    return np.array(found["vectors"], np.float32)


def keep_prompt(path: Path, load, name: str, data: Dataset, examples: list[Row], test: list[Row], *,
                fillers: int, leave_one_out: bool, seed: int) -> dict:  # fmt: skip
    """Return what a decoder says after a prompt of examples, and the vectors that the prompt gives them.

    Log-probabilities of labels: test [N, Y], content_free [3, Y], random_words [F, Y]; the likeliest token
    after each test item, and the labels' first tokens; vectors: "vanilla" and, if asked, "leave_one_out",
    each (of examples [K, D], of test items [N, D]).
    """
    inputs = [values for values, _ in test]

    def measure():
        config, params, tokenizer = load()
        prompt = score.FewShotPrompt(Decoder(config, params), tokenizer, data.task, examples)
        read = prompt.read(inputs)
        free = score.content_free_inputs(data.task)
        words = score.random_word_inputs(inputs, fillers, seed)
        others = prompt.label_log_probs([*free, *words])
        vanilla = embed_in_prompt(config, params, tokenizer, data.task, examples, [])
        found = {
            "test": read.log_probs_NY.tolist(), "likeliest": read.likeliest_N.tolist(),
            "first_tokens": [ids[0] for ids in prompt.labels], "content_free": others[: len(free)].tolist(),
            "random_words": others[len(free) :].tolist(), "vanilla": _listed(vanilla.examples_KD),
            "queries": _listed(read.vectors_ND),
        }  # fmt: skip
        if leave_one_out:
            alone = embed_leave_one_out(config, params, tokenizer, data.task, examples, [])
            found["leave_one_out"] = _listed(alone.examples_KD)
        return found

    found = kept_result(
        path, measure, model=name, task=[data.task.fields, data.task.labels], examples=examples,
        inputs=inputs, fillers=fillers, leave_one_out=leave_one_out, seed=seed,
    )  # fmt: skip
    arrays = ("test", "likeliest", "first_tokens", "content_free", "random_words", "vanilla", "queries")
    return {key: np.array(found[key]) for key in (*arrays, *(("leave_one_out",) if leave_one_out else ()))}


def _listed(vectors_ND: np.ndarray) -> list:
    """Return vectors as lists, rounded to what float16 tells apart: a file of JSON is a third as long."""
    return vectors_ND.astype(np.float16).astype(np.float64).round(6).tolist()


def icl_log_probs(found: dict) -> dict[str, np.ndarray]:
    """Return log-probabilities [N, Y] of in-context learning as given and of each way of calibrating it."""
    test_NY, estimate = found["test"], score.estimate_prior
    priors = {
        "contextual": estimate(found["content_free"]),
        "domain": estimate(found["random_words"], transductive=True),
        "batch": estimate(test_NY, normalise_each=True, transductive=True),
    }
    calibrated = {name: score.CALIBRATORS[name](test_NY, prior) for name, prior in priors.items()}
    return {"icl": score.CALIBRATORS["icl"](test_NY, None)} | calibrated


def abstaining_accuracy(found: dict, gold_N: np.ndarray) -> float:
    """Return accuracy as the paper's code counts it: what the model writes next must begin the true label."""
    return float(np.mean(found["likeliest"] == found["first_tokens"][gold_N]))
