"""A tokenised split on disk: one memory-mapped array of ids, and where each document starts."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxllm.data.tokenizer import Tokenizer, begin_ids

SPLITS = ("train", "valid")
# Text handed to the tokenizer at once. Its own records cost over 100 bytes a token, so this
# bounds memory near 50 MB; larger batches are no faster.
_BATCH_CHARS = 1 << 20
_PIECE_COST = 64  # What a short document costs besides its text, in characters.


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """The documents of a split, one after another, each followed by eos (and begun by BOS, if asked for).

    Attributes:
      ids: [N], uint16 or uint32, memory-mapped: only what is read enters memory.
      starts: [num_documents], int64: where each document's first id is; starts[0] is 0.
      num_bytes: UTF-8 bytes of the text that is predicted, eos not counted: the divisor of bits per byte.
      known_fingerprint: the `fingerprint`, where it was computed when the ids were written.
      predicted: [N], bool, of examples: the ids that are to be predicted. None: documents, all of them.
      copies: how many of the documents are the same as an earlier one.

    Examples:
      >>> ids = np.array([5, 6, 0, 7, 0], np.uint16)  # Two documents; eos is 0.
      >>> tokens = Tokens(ids, starts=np.array([0, 3]), num_bytes=9)
      >>> len(tokens), tokens.num_documents, tokens.document(1).tolist()
      (5, 2, [7, 0])
    """

    ids: np.ndarray
    starts: np.ndarray
    num_bytes: int
    known_fingerprint: str | None = None
    predicted: np.ndarray | None = None
    copies: int = 0

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of ids, starts and what is predicted, whatever file they came from."""
        if self.known_fingerprint:
            return self.known_fingerprint
        streams = [self.ids] if self.predicted is None else [self.ids, self.predicted]
        return _fingerprint([hashlib.sha256(stream) for stream in streams], self.starts)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Tokens({len(self):,} ids in {self.num_documents:,} documents, {self.num_bytes:,} bytes)"

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.starts)

    @functools.cached_property
    def num_predicted(self) -> int:
        """How many ids are to be predicted."""
        return len(self) if self.predicted is None else int(np.count_nonzero(self.predicted))

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """How many ids each document has, eos included: int64 [num_documents]."""
        return np.diff(self.starts, append=len(self))

    def document(self, index: int) -> np.ndarray:
        """Return the ids of one document, its eos included."""
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.ids)
        return self.ids[self.starts[index] : end]


def write_tokens(
    assigned: Iterator,
    tokenizer: Tokenizer,
    folder: Path,
    examples: bool = False,
    pairs: bool = False,
    copies: Mapping[str, int] = dict.fromkeys(SPLITS, 0),
) -> None:
    """Tokenise pieces, as split.assign yields them, into the files that `open_tokens` reads.

    Only a batch of text and its ids are in memory at once, with 8 bytes a document.

    Args:
      assigned: (side, piece).
      tokenizer: makes ids of them.
      folder: where the files go.
      examples: the pieces are examples, of which not every id is predicted.
      pairs: what is predicted of them answers the rest, and stands apart from it.
      copies: of each side, how many documents are the same as an earlier one.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    kinds = ("ids", "predicted") if examples else ("ids",)
    starts = {name: array("q") for name in SPLITS}
    num_ids = dict.fromkeys(SPLITS, 0)
    num_bytes = dict.fromkeys(SPLITS, 0)
    inside = dict.fromkeys(SPLITS, False)  # Has the current document's start been noted?
    hashes = {name: [hashlib.sha256() for _ in kinds] for name in SPLITS}
    eos, begin = np.array([tokenizer.eos_id], dtype), np.array(begin_ids(tokenizer), dtype)
    with contextlib.ExitStack() as stack:
        streams = {
            name: [stack.enter_context(open(folder / f"{name}.{kind}", "wb")) for kind in kinds]
            for name in SPLITS
        }
        for batch in _batched(assigned):
            pieces = [piece for _, piece in batch]
            if examples:
                encode = "encode_pair" if pairs else "encode"
                encoded = [getattr(piece.example, encode)(tokenizer) for piece in pieces]
            else:
                encoded = [(ids,) for ids in tokenizer.encode_batch([piece.text for piece in pieces])]
            for (name, piece), (ids, *predicted) in zip(batch, encoded, strict=True):
                if not inside[name]:
                    starts[name].append(num_ids[name])
                if not examples:
                    first, last = begin[: 0 if inside[name] else None], eos[: piece.ends_document]
                    ids = np.concatenate([first, ids, last])
                inside[name] = not piece.ends_document
                written = [array.tobytes() for array in (ids.astype(dtype), *predicted)]
                for stream, digest, content in zip(streams[name], hashes[name], written, strict=True):
                    stream.write(content)
                    digest.update(content)
                num_ids[name] += len(ids)
                num_bytes[name] += len((piece.example.predicted_text if examples else piece.text).encode())
    fingerprints = {}
    for name in SPLITS:
        starts_N = np.array(starts[name], np.int64)
        (folder / f"{name}.starts").write_bytes(starts_N.data)
        fingerprints[name] = _fingerprint(hashes[name], starts_N)
    meta = {"dtype": dtype.name, "num_ids": num_ids, "num_bytes": num_bytes, "fingerprints": fingerprints}
    meta |= {"examples": examples, "copies": dict(copies)}
    (folder / "meta.json").write_text(json.dumps(meta))


def open_tokens(folder: Path) -> dict[str, Tokens] | None:
    """Return both splits, memory-mapped, or None if the folder does not hold them whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        splits = {}
        for name in SPLITS:
            ids = _map(folder / f"{name}.ids", np.dtype(meta["dtype"]))
            starts = _map(folder / f"{name}.starts", np.dtype(np.int64))
            predicted = _map(folder / f"{name}.predicted", np.dtype(bool)) if meta["examples"] else None
            if any(len(x) != meta["num_ids"][name] for x in (ids, predicted) if x is not None):
                return None
            fingerprint = meta["fingerprints"][name]
            num_bytes, copies = meta["num_bytes"][name], meta["copies"][name]
            splits[name] = Tokens(ids, starts, num_bytes, fingerprint, predicted, copies)
    except (OSError, ValueError, KeyError):
        return None
    return splits


def _fingerprint(hashes: list, starts: np.ndarray) -> str:
    ids, *predicted = (one.digest() for one in hashes)
    content = b"".join([ids, np.asarray(starts, np.int64).tobytes(), *predicted])
    return hashlib.sha256(content).hexdigest()[:32]


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _batched(assigned: Iterator) -> Iterator[list]:
    batch, cost = [], 0
    for item in assigned:
        batch.append(item)
        cost += len(item[1].text) + _PIECE_COST
        if cost >= _BATCH_CHARS:
            yield batch
            batch, cost = [], 0
    if batch:
        yield batch
