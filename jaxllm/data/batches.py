"""Batches of packed windows: shuffled and endless to train on, ordered and complete to evaluate.

The token stream is cut in windows of seq_len + 1 ids that overlap by one, so every token but the
first is a target exactly once. A Grain pipeline shuffles the windows anew each epoch. A global
batch is the same whatever the number of processes; each takes a block of its rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.data.tokens import Tokens
from jaxllm.errors import UserError

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]


def batches(
    tokens: Tokens,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Return an iterator of training batches that can save and restore its place.

    Each item is a dict of arrays [batch_size // process_count, seq_len]:
      tokens: int32.
      targets: int32, the token after each.
      segment_ids: int32, 0 for the window's first document, 1 for the next ...: attention that
        compares them stays inside documents.
      mask: float32, 0 where the target is another document's first token, 1 elsewhere.

    Args:
      tokens: what to read, a split of a Corpus.
      batch_size: global, over all processes.
      seq_len: tokens a row.
      seed: decides the order, a different one each epoch.
      shuffle: False keeps the windows in order.
      epochs: how many passes; None never ends. A batch may hold the end of one pass and the start
        of the next; what is left after the last full batch is dropped.
      process_index: this process, as jax.process_index() says.
      process_count: how many processes there are, as jax.process_count() says.

    Raises:
      UserError: if the split is shorter than one sequence or one batch, or the numbers do not fit.

    Examples:
      >>> ids = np.array([1, 2, 3, 0, 4, 5, 0], np.uint16)  # Two documents; eos is 0.
      >>> tokens = Tokens(ids, starts=np.array([0, 4]), num_bytes=5)
      >>> it = batches(tokens, batch_size=1, seq_len=6, seed=0)
      >>> for name, value in next(it).items():
      ...     print(f"{name:12}", value[0])
      tokens       [1 2 3 0 4 5]
      targets      [2 3 0 4 5 0]
      segment_ids  [0 0 0 0 1 1]
      mask         [1. 1. 1. 0. 1. 1.]
    """
    _check(tokens, batch_size, seq_len, process_index, process_count)
    if seed < 0 or (epochs is not None and epochs < 1):
        raise UserError(
            f"seed={seed}, epochs={epochs}: expected seed >= 0 and epochs >= 1 (or None)"
        )
    num_windows = (len(tokens) - 1) // seq_len
    if epochs is not None and num_windows * epochs < batch_size:
        raise UserError(
            f"batch_size {batch_size} is more than the {num_windows * epochs} sequences of seq_len "
            f"{seq_len} that the data holds in {epochs} epochs; use a smaller batch_size"
        )
    import grain  # Takes a second: only those who train pay for it.

    windows = grain.MapDataset.range(num_windows)
    if shuffle:
        # Grain orders epoch e by seed + e: mixed first, or seeds 0 and 1 would share epochs.
        windows = windows.shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    windows = windows.repeat(epochs)
    # Global batch k is blocks k * process_count to (k + 1) * process_count - 1, one a process.
    num_steps = len(windows) // batch_size
    blocks = windows.batch(batch_size // process_count, drop_remainder=True, batch_fn=np.array)
    mine = blocks[process_index : num_steps * process_count : process_count]
    rows = mine.map(functools.partial(_gather, tokens, seq_len=seq_len))
    identity = {
        "tokens": len(tokens),
        "data": tokens.fingerprint,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "seed": seed,
        "shuffle": shuffle,
    }
    # A batch costs well under a millisecond: one thread reading ahead hides a slow disk.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return Batches(iter(rows.to_iter_dataset(ahead)), identity)


class Batches:
    """An iterator over training batches whose place is a small dict."""

    def __init__(self, iterator: grain.DatasetIterator, identity: dict):
        self._iterator = iterator
        self._identity = identity
        self._step = 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def state(self) -> dict:
        """Return the place, JSON-able: how many batches are done, and what they were cut from."""
        return {"step": self._step, **self._identity}

    def restore(self, state: dict) -> None:
        """Go to a saved place: the next batch is the one that came next when it was saved.

        The number of processes may have changed since.

        Raises:
          UserError: if the state belongs to other data, or to another order of it.
        """
        for name, value in self._identity.items():
            if name == "data" and name not in state:
                continue  # saved before there were fingerprints
            if state.get(name) != value:
                raise UserError(
                    f"the saved place in the data has {name}={state.get(name)} but this run has "
                    f"{name}={value}; resume with the same data settings, or start "
                    "without the state"
                )
        self._step = state["step"]
        self._iterator.set_state({"next_index": self._step})


def eval_batches(
    tokens: Tokens,
    *,
    batch_size: int,
    seq_len: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield batches, as `batches` does, that hold every token but the first once as a target.

    They come in order and end. Rows and positions past the end repeat the last token, with mask 0.

    Raises:
      UserError: if the split is shorter than one sequence, or the numbers do not fit.
    """
    _check(tokens, batch_size, seq_len, process_index, process_count)
    num_windows = -(-(len(tokens) - 1) // seq_len)
    num_rows = batch_size // process_count
    starts = range(process_index * num_rows, num_windows + process_index * num_rows, batch_size)
    return (_gather(tokens, start + np.arange(num_rows), seq_len) for start in starts)


def _gather(tokens: Tokens, windows_B: np.ndarray, seq_len: int) -> Batch:
    """Return the rows that begin at windows_B * seq_len."""
    first_B = windows_B.astype(np.int64)[:, None] * seq_len
    positions_BU = first_B + np.arange(seq_len + 1)  # U is T + 1: targets are shifted tokens.
    inside_BU = np.minimum(positions_BU, len(tokens) - 1)
    ids_BU = tokens.ids[inside_BU].astype(np.int32)
    segments_BU = _segments(tokens.starts, inside_BU)
    mask_BT = (segments_BU[:, 1:] == segments_BU[:, :-1]) & (positions_BU[:, 1:] < len(tokens))
    return {
        "tokens": ids_BU[:, :-1],
        "targets": ids_BU[:, 1:],
        "segment_ids": segments_BU[:, :-1],
        "mask": mask_BT.astype(np.float32),
    }


def _segments(starts: np.ndarray, positions_BU: np.ndarray) -> np.ndarray:
    """Return the document of each position, counted from that of its row's first position."""
    segments_BU = np.zeros(positions_BU.shape, np.int32)
    begin_B = np.searchsorted(starts, positions_BU[:, 0], side="right")
    end_B = np.searchsorted(starts, positions_BU[:, -1], side="right")
    # Most rows lie inside one document; the others look among the few starts they hold.
    for row in np.flatnonzero(begin_B != end_B):
        inner = starts[begin_B[row] : end_B[row]]
        segments_BU[row] = np.searchsorted(inner, positions_BU[row], side="right")
    return segments_BU


def _check(tokens, batch_size, seq_len, process_index, process_count) -> None:
    if batch_size < 1 or seq_len < 1:
        raise UserError(
            f"batch_size={batch_size}, seq_len={seq_len}: expected both to be at least 1"
        )
    if len(tokens) < seq_len + 1:
        raise UserError(
            f"the data has {len(tokens)} tokens, shorter than one sequence of seq_len {seq_len} "
            "and its next token; give more text or a smaller seq_len"
        )
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process_index={process_index}, process_count={process_count}: expected an index from "
            "0 to process_count - 1"
        )
    if batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} does not divide by the {process_count} processes; choose a "
            f"multiple of {process_count}"
        )
