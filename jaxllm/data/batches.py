"""Batches of packed rows: shuffled and endless to train on, ordered and complete to evaluate.

Of documents the token stream is cut in windows of seq_len + 1 ids that overlap by one, so every token but
the first is a target exactly once. Of examples none is cut: each lies whole in a row, several to a row. A
Grain pipeline shuffles the rows anew each epoch. A global batch is the same whatever the number of
processes; each takes a block of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxllm.data.packing import pack
from jaxllm.data.pairs import gather_pairs, pair_lengths
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
    packed: bool = True,
    start_id: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Return an iterator of training batches that can save and restore its place.

    Each item is a dict of arrays [batch_size // process_count, seq_len]:
      tokens: int32.
      targets: int32, the token after each.
      segment_ids: int32, 0 for the window's first document, 1 for the next ...: attention that
        compares them stays inside documents.
      mask: float32, 0 where the target is another document's first token, or not to be predicted; else 1.

    Args:
      tokens: what to read, a split of a Corpus.
      batch_size: global, over all processes.
      seq_len: tokens a row.
      seed: decides the order, a different one each epoch.
      shuffle: False keeps the windows in order.
      epochs: how many passes; None never ends. A batch may hold the end of one pass and the start
        of the next; what is left after the last full batch is dropped.
      packed: of examples, several to a row; or each in a row of its own.
      start_id: of pairs for an encoder-decoder, what answers begin with: batches are `pairs.gather_pairs`'s.
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
        raise UserError(f"seed={seed}, epochs={epochs}: expected seed >= 0 and epochs >= 1 (or None)")
    rows = _rows(tokens, seq_len, packed, start_id)
    num_rows = rows.whole
    if epochs is not None and num_rows * epochs < batch_size:
        raise UserError(
            f"batch_size {batch_size} is more than the {num_rows * epochs} sequences of seq_len "
            f"{seq_len} that the data holds in {epochs} epochs; use a smaller batch_size"
        )
    import grain  # Takes a second: only those who train pay for it.

    numbers = grain.MapDataset.range(num_rows)
    if shuffle:
        # Grain orders epoch e by seed + e: mixed first, or seeds 0 and 1 would share epochs.
        numbers = numbers.shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    numbers = numbers.repeat(epochs)
    # Global batch k is blocks k * process_count to (k + 1) * process_count - 1, one a process.
    num_steps = len(numbers) // batch_size
    blocks = numbers.batch(batch_size // process_count, drop_remainder=True, batch_fn=np.array)
    mine = blocks[process_index : num_steps * process_count : process_count]
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
    return Batches(iter(mine.map(rows.gather).to_iter_dataset(ahead)), identity)


class Batches:
    """An iterator over training batches whose place is a small dict."""

    def __init__(self, iterator: grain.DatasetIterator, identity: dict):
        self._iterator = iterator
        self._identity = identity
        self._step = 0

    def __repr__(self) -> str:
        return f"Batches({self._step} done)"

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
    packed: bool = True,
    start_id: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield batches, as `batches` does, that hold every token but the first once as a target.

    They come in order and end. Rows and positions past the end repeat the last token, with mask 0.

    Raises:
      UserError: if the split is shorter than one sequence, or the numbers do not fit.
    """
    _check(tokens, batch_size, seq_len, process_index, process_count)
    rows = _rows(tokens, seq_len, packed, start_id)
    mine = batch_size // process_count
    starts = range(process_index * mine, rows.all + process_index * mine, batch_size)
    return (rows.gather(start + np.arange(mine)) for start in starts)


def count_eval_batches(
    tokens: Tokens, *, batch_size: int, seq_len: int, packed: bool = True, start_id: int | None = None
) -> int:
    """Return how many batches `eval_batches` yields.

    Args:
      tokens: and the others as of `eval_batches`.
    """
    return -(-_rows(tokens, seq_len, packed, start_id).all // batch_size)


class _Rows(NamedTuple):
    """What batches are made of."""

    whole: int  # rows to train on
    all: int  # and to evaluate: the last window of a text is shorter
    gather: Callable[[np.ndarray], Batch]  # numbers of rows -> these rows


def _rows(tokens: Tokens, seq_len: int, packed: bool, start_id: int | None) -> _Rows:
    if start_id is not None:
        fits = np.flatnonzero(np.maximum(*pair_lengths(tokens)) <= seq_len)
        if not len(fits):
            count = tokens.num_documents
            raise UserError(f"all {count} examples are longer than seq_len {seq_len}; raise it")
        known = np.append(fits, tokens.num_documents)  # past the last there is none
        place = lambda numbers_B: known[np.minimum(numbers_B, len(fits))]
        pairs = lambda numbers_B: gather_pairs(tokens, place(numbers_B), seq_len, start_id)
        return _Rows(len(fits), len(fits), pairs)
    if tokens.predicted is None:
        whole, rest = divmod(len(tokens) - 1, seq_len)
        return _Rows(whole, whole + bool(rest), lambda numbers_B: _windows(tokens, numbers_B, seq_len))
    packing = pack(tokens.lengths, seq_len + 1, packed)
    if not len(packing):
        raise UserError(f"all {tokens.num_documents} examples are longer than seq_len {seq_len}; raise it")
    gather = lambda numbers_B: _examples(tokens, packing, numbers_B, seq_len)
    return _Rows(len(packing), len(packing), gather)


def _windows(tokens: Tokens, windows_B: np.ndarray, seq_len: int) -> Batch:
    """Return the rows that begin at windows_B * seq_len."""
    first_B = windows_B.astype(np.int64)[:, None] * seq_len
    positions_BU = first_B + np.arange(seq_len + 1)  # U is T + 1: targets are shifted tokens.
    inside_BU = np.minimum(positions_BU, len(tokens) - 1)
    counts_BT = positions_BU[:, 1:] < len(tokens)
    return _batch(tokens, inside_BU, _segments(tokens.starts, inside_BU), counts_BT)


def _examples(tokens: Tokens, packing, rows_B: np.ndarray, seq_len: int) -> Batch:
    """Return rows of whole documents, and after the last of them its last token again."""
    positions_BU = np.full((len(rows_B), seq_len + 1), len(tokens) - 1, np.int64)
    segments_BU = np.zeros(positions_BU.shape, np.int32)
    counts_BT = np.zeros((len(rows_B), seq_len), bool)
    for row, number in enumerate(rows_B):
        begin = 0
        for segment, document in enumerate(packing.row(int(number))):
            start, end = tokens.starts[document], begin + tokens.lengths[document]
            positions_BU[row, begin:end] = start + np.arange(end - begin)
            segments_BU[row, begin:end] = segment
            begin = end
        if begin:
            positions_BU[row, begin:] = positions_BU[row, begin - 1]
            segments_BU[row, begin:] = segment + 1
            counts_BT[row, : begin - 1] = True
    counts_BT &= tokens.predicted[positions_BU[:, 1:]]
    return _batch(tokens, positions_BU, segments_BU, counts_BT)


def _batch(tokens: Tokens, positions_BU: np.ndarray, segments_BU: np.ndarray, counts_BT: np.ndarray) -> Batch:
    ids_BU = tokens.ids[positions_BU].astype(np.int32)
    mask_BT = (segments_BU[:, 1:] == segments_BU[:, :-1]) & counts_BT
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
        raise UserError(f"batch_size={batch_size}, seq_len={seq_len}: expected both to be at least 1")
    if tokens.predicted is None and len(tokens) < seq_len + 1:
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
