"""What neighbours bring without training on them, as the paper's baselines, with their slips repaired.

In-context: neighbours before the document; the nearest stands next to it and stays when there is no room
(the release keeps the farthest), and the start token is there. Interpolation with a unigram model of the
neighbours: nearer ones weigh more (the release's sign favours far ones), and its share is chosen on other
documents.
"""

from collections.abc import Sequence

import numpy as np

from jaxllm.pretrained.load import Pretrained
from jaxllm.score import score_sequences

SHARES = np.arange(20) / 100  # of the unigram model, as the paper sweeps


def half_window_log_probs(model: Pretrained, documents, before, window: int) -> np.ndarray:
    """Return log-probabilities [N] of documents, read in halves of a window after what stands before them.

    Args:
      model: config, parameters, tokenizer.
      documents: ids, the first of each not scored.
      before: of each, ids that all its halves are read after; the document's own ids before a half fill what
        is left of the window.
      window: ids that are read at once.
    """
    half, sequences, owners = window // 2, [], []
    for number, (ids, context) in enumerate(zip(documents, before, strict=True)):
        room = window - half - 1 - len(context)
        for start in range(1, len(ids), half):
            read = [ids[0], *context, *ids[max(1, start - room) : start]]
            sequences.append((read, ids[start : start + half]))
            owners.append(number)
    scored = score_sequences(model.config, model.params, [[*read, *piece] for read, piece in sequences])
    totals = np.zeros(len(documents))
    for log_probs, (_, piece), number in zip(scored, sequences, owners, strict=True):
        totals[number] += log_probs[-len(piece) :].sum(dtype=np.float64)
    return totals


def in_context(neighbours: Sequence[Sequence[int]], room: int) -> list[int]:
    """Return neighbours' ids, nearest last, cut at the left to what there is room for."""
    ids: list[int] = []
    for neighbour in neighbours:
        ids = [*neighbour, *ids]
        if len(ids) >= room:
            break
    return ids[-room:]


def interpolated(model: Pretrained, documents, neighbours, distances, window: int) -> np.ndarray:
    """Return log-probabilities [N, S] of documents, mixed with their neighbours' unigrams by each share."""
    totals = []
    for ids, some, distance in zip(documents, neighbours, distances, strict=True):
        near = np.asarray(distance[: len(some)], np.float64)
        weights = np.exp(near.min() - near)
        unigram = np.zeros(model.config.known_vocab_size)
        for weight, neighbour in zip(weights / weights.sum(), some, strict=True):
            if len(neighbour):
                unigram += weight * np.bincount(neighbour, minlength=len(unigram)) / len(neighbour)
        pieces = [ids[at : at + window + 1] for at in range(0, len(ids) - 1, window)]
        scored = score_sequences(model.config, model.params, pieces)
        ours = np.exp(np.concatenate(scored).astype(np.float64))
        theirs = unigram[np.concatenate([piece[1:] for piece in pieces]).astype(int)]
        totals.append([np.log((1 - a) * ours + a * theirs + 1e-300).sum() for a in SHARES])
    return np.array(totals)


def chosen_on_others(totals_NS: np.ndarray) -> np.ndarray:
    """Return each document's log-probability at the share that is best for the other half of documents."""
    halves = [np.arange(len(totals_NS)) % 2 == part for part in (0, 1)]
    chosen = np.zeros(len(totals_NS))
    for mine, others in (halves, halves[::-1]):
        best = np.argmax(totals_NS[others].sum(0)) if others.any() else 0
        chosen[mine] = totals_NS[mine, best]
    return chosen
