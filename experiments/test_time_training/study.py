"""One model, its documents and their neighbours: what is measured of it, and kept."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.test_time_training import baselines
from experiments.test_time_training.domains import Domains
from jaxllm.adapt import PerDocumentConfig, adapt_and_score, split_document
from jaxllm.data import start_id
from jaxllm.kept_result import kept_result
from jaxllm.pretrained.load import Pretrained
from jaxllm.retrieve import (
    Encoder,
    Index,
    VectorStore,
    build_store,
    choose_informative,
    find_leaks,
    load_index,
    search,
)

POOL = 100  # neighbours that are found; those that are trained on are some of them
MAIN = 20  # neighbours that most comparisons take


class Subject(NamedTuple):
    """A model and how it is trained for a document."""

    name: str
    model: Pretrained
    how: PerDocumentConfig
    after: tuple[int, ...]


class Library(NamedTuple):
    """What is retrieved from, and what is scored."""

    texts: list[str]
    domains: np.ndarray  # [R], of each
    test: list[str]
    test_domains: np.ndarray  # [N]
    unseen: np.ndarray  # bool [N]
    encoder: Encoder
    store: VectorStore
    index: Index
    ids: np.ndarray  # [N, POOL], nearest first
    distances: np.ndarray
    queries: np.ndarray  # [N, D]


def build_library(out: Path, encoder: Encoder, domains: Domains) -> Library:
    """Embed the index, and find every test text's neighbours."""
    texts = [text for some in domains.index.values() for text in some]
    names = np.array([name for name, some in domains.index.items() for _ in some])
    test = [text for some in domains.test.values() for text in some]
    test_names = np.array([name for name, some in domains.test.items() for _ in some])
    store = build_store(out / "stores", encoder, texts, progress=True)
    store.check_encoder(encoder)
    index, queries = load_index(store), encoder.embed(test)
    found = search(index, queries, min(POOL, len(texts)))
    unseen = np.isin(test_names, domains.unseen)
    return Library(
        texts, names, test, test_names, unseen, encoder, store, index, found.ids, found.distances, queries
    )


def adapted(
    out: Path, subject: Subject, setting: str, documents, neighbours, how: PerDocumentConfig | None = None
) -> dict:
    """Return {"log_probs" [N, E], "steps" [N], "seconds"}, measured or kept."""
    how = subject.how if how is None else how
    config, params, _ = subject.model

    def measure():
        found = adapt_and_score(
            config, params, documents, neighbours, how, after=subject.after, progress=True
        )
        return {
            "log_probs": found.log_probs.tolist(), "steps": found.steps.tolist(), "seconds": found.seconds,
            "cut": int(found.cut.sum()),
        }  # fmt: skip

    print(f"{subject.name}: {setting}")
    given = hashlib.sha256(repr([documents, neighbours]).encode()).hexdigest()
    return kept_result(
        out / "kept" / f"{subject.name}-{setting}.json", measure, model=digest(subject.model), given=given,
        how=repr(how), after=subject.after,
    )  # fmt: skip


def digest(model: Pretrained) -> str:
    """Return a digest of a model's config and parameters."""
    found = hashlib.sha256(repr(model.config).encode())
    for leaf in jax.tree.leaves(model.params):
        found.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)
    return found.hexdigest()


def study(
    out: Path, subject: Subject, library: Library, settings: tuple[str, ...], rows: np.ndarray, seed: int
) -> dict:
    """Return {setting: what `adapted` gives}, with the documents' bytes, domains and how they were seen.

    Args:
      settings: of "near" (always), "far", "shuffled", "informative", "domain", "random", "carried", "split",
        "dynamic", "in_context", "interpolated", and "rate_X" for X times the learning rate.
      rows: which of the library's test texts.
    """
    draw = np.random.default_rng([seed, 43])
    words, begin = subject.model.tokenizer, start_id(subject.model.tokenizer)
    encode = lambda texts: [list(map(int, ids)) for ids in words.encode_batch(list(texts))]
    documents = [[begin, *ids] for ids in encode(library.test[row] for row in rows)]
    most = max(subject.after)
    wanted = {int(i) for row in rows for i in library.ids[row]}
    by_domain = {name: np.flatnonzero(library.domains == name) for name in set(library.test_domains[rows])}
    orders: dict[str, list] = {
        "near": [library.ids[row, :most] for row in rows],
        "far": [library.ids[row, :MAIN][::-1] for row in rows],
        "shuffled": [draw.permutation(library.ids[row, :MAIN]) for row in rows],
        "domain": [draw.permutation(by_domain[library.test_domains[row]])[:MAIN] for row in rows],
        "random": [draw.permutation(len(library.texts))[:MAIN] for _ in rows],
        "informative": [_informative(library, row) for row in rows],
    }
    wanted |= {int(i) for some in orders.values() for each in some for i in each}
    ids_of = dict(zip(sorted(wanted), encode(library.texts[i] for i in sorted(wanted)), strict=True))
    lists = {name: [[ids_of[int(i)] for i in each] for each in some] for name, some in orders.items()}
    near = [some[:MAIN] for some in lists["near"]]
    found: dict = {
        "bytes": np.array([len(library.test[row].encode()) for row in rows]),
        "tokens": np.array([len(ids) - 1 for ids in documents]),
        "domains": library.test_domains[rows], "unseen": library.unseen[rows],
        "near": adapted(out, subject, "near", documents, lists["near"]),
    }  # fmt: skip
    window = subject.how.window or subject.model.config.context_length
    for setting in settings:
        if setting in orders and setting != "near":
            found[setting] = adapted(out, subject, setting, documents, lists[setting])
        elif setting == "carried":
            how = dataclasses.replace(subject.how, optimizer="carried")
            found[setting] = adapted(out, subject, setting, documents, near, how)
        elif setting.startswith("rate_"):
            rate = subject.how.learning_rate * float(setting.removeprefix("rate_"))
            how = dataclasses.replace(subject.how, learning_rate=rate)
            found[setting] = adapted(out, subject, setting, documents, near, how)
        elif setting == "in_context":
            room = window // 4
            before = [baselines.in_context(some, room) for some in near]
            totals = [
                baselines.half_window_log_probs(subject.model, documents, each, window)
                for each in ([[]] * len(documents), before)
            ]
            found[setting] = {"log_probs": np.stack(totals, 1)}
        elif setting == "interpolated":
            distances = library.distances[rows, :MAIN]
            totals = baselines.interpolated(subject.model, documents, near, distances, window)
            chosen = baselines.chosen_on_others(totals)
            found[setting] = {"log_probs": np.stack([totals[:, 0], chosen], 1)}
    if "split" in settings or "dynamic" in settings:
        found |= _split(out, subject, library, documents, settings, window)
    return found


def _informative(library: Library, row: int) -> np.ndarray:
    ids = library.ids[row]
    vectors = np.asarray(library.store.vectors_ND[np.sort(ids)], np.float32)[np.argsort(np.argsort(ids))]
    return ids[choose_informative(library.queries[row], vectors, min(MAIN, len(ids)))]


def _split(out, subject, library, documents, settings, window) -> dict:
    """Retrieve and train by the first part of each document, score the second."""
    words, begin = subject.model.tokenizer, documents[0][0]
    halves = [split_document(ids[1:], window) for ids in documents]
    scored = [[begin, *second] for _, second in halves]
    found = {"split_bytes": np.array([len(words.decode(second).encode()) for _, second in halves])}
    if "split" in settings:
        queries = library.encoder.embed([words.decode(first) for first, _ in halves])
        ids = search(library.index, queries, min(MAIN, len(library.texts))).ids
        encode = lambda row: [list(map(int, i)) for i in words.encode_batch([library.texts[n] for n in row])]
        found["split"] = adapted(out, subject, "split", scored, [encode(row) for row in ids])
    if "dynamic" in settings:
        again = [[first] * MAIN for first, _ in halves]
        found["dynamic"] = adapted(out, subject, "dynamic", scored, again)
    return found


def planted(out: Path, subject: Subject, library: Library, rows: np.ndarray, share: float = 0.04) -> dict:
    """Plant copies of some test texts in the index; find them; say what they bring."""
    count = max(1, round(share * len(rows)))
    chosen = rows[:: max(1, len(rows) // count)][:count]
    texts = [*library.texts, *(library.test[row] for row in chosen)]
    vectors = np.concatenate([np.asarray(library.store.vectors_ND, np.float32), library.queries[chosen]])
    k = min(MAIN, len(library.texts))
    ids = search(load_index(vectors), library.queries[rows], k).ids
    with_copies = find_leaks([library.test[row] for row in rows], [[texts[i] for i in row] for row in ids])
    without = find_leaks(
        [library.test[row] for row in rows],
        [[library.texts[i] for i in library.ids[row, :k]] for row in rows],
    )
    caught = [place is not None for place, row in zip(with_copies.found, rows, strict=True) if row in chosen]
    words, begin = subject.model.tokenizer, start_id(subject.model.tokenizer)
    encode = lambda some: [list(map(int, ids)) for ids in words.encode_batch(some)]
    documents = [[begin, *ids] for ids in encode([library.test[row] for row in chosen])]
    places = [list(rows).index(row) for row in chosen]
    lists = [encode([texts[i] for i in ids[place]]) for place in places]
    return {
        "found": float(np.mean(caught)), "rate_without": without.rate, "rate_with": with_copies.rate,
        "rows": places, "run": adapted(out, subject, "planted", documents, lists),
    }  # fmt: skip
