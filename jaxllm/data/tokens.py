"""A tokenised split on disk: one memory-mapped array of ids, and where each document starts."""

import dataclasses
import functools
import hashlib
import json
from array import array
from collections.abc import Iterator
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
      num_bytes: UTF-8 bytes of the text, eos not counted: the divisor of bits per byte.
      known_fingerprint: the `fingerprint`, where it was computed when the ids were written.

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

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the ids and of where documents start, whatever file they came from."""
        return self.known_fingerprint or _fingerprint(hashlib.sha256(self.ids), self.starts)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.starts)

    def document(self, index: int) -> np.ndarray:
        """Return the ids of one document, its eos included."""
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.ids)
        return self.ids[self.starts[index] : end]


def write_tokens(assigned: Iterator, tokenizer: Tokenizer, folder: Path) -> None:
    """Tokenise pieces, as split.assign yields them, into the files that `open_tokens` reads.

    Only a batch of text and its ids are in memory at once, with 8 bytes a document.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    starts = {name: array("q") for name in SPLITS}
    num_ids = dict.fromkeys(SPLITS, 0)
    num_bytes = dict.fromkeys(SPLITS, 0)
    inside = dict.fromkeys(SPLITS, False)  # Has the current document's start been noted?
    hashes = {name: hashlib.sha256() for name in SPLITS}
    eos, begin = np.array([tokenizer.eos_id], dtype), np.array(begin_ids(tokenizer), dtype)
    with open(folder / "train.ids", "wb") as train, open(folder / "valid.ids", "wb") as valid:
        streams = {"train": train, "valid": valid}
        for batch in _batched(assigned):
            encoded = tokenizer.encode_batch([piece.text for _, piece in batch])
            for (name, piece), ids in zip(batch, encoded, strict=True):
                if not inside[name]:
                    starts[name].append(num_ids[name])
                    ids = np.concatenate([begin, ids])
                inside[name] = not piece.ends_document
                if piece.ends_document:
                    ids = np.append(ids, eos)
                written = ids.astype(dtype).tobytes()
                streams[name].write(written)
                hashes[name].update(written)
                num_ids[name] += len(ids)
                num_bytes[name] += len(piece.text.encode())
    fingerprints = {}
    for name in SPLITS:
        starts_N = np.array(starts[name], np.int64)
        starts_N.tofile(folder / f"{name}.starts")
        fingerprints[name] = _fingerprint(hashes[name], starts_N)
    meta = {"dtype": dtype.name, "num_ids": num_ids, "num_bytes": num_bytes, "fingerprints": fingerprints}
    (folder / "meta.json").write_text(json.dumps(meta))


def open_tokens(folder: Path) -> dict[str, Tokens] | None:
    """Return both splits, memory-mapped, or None if the folder does not hold them whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        splits = {}
        for name in SPLITS:
            ids = _map(folder / f"{name}.ids", np.dtype(meta["dtype"]))
            starts = _map(folder / f"{name}.starts", np.dtype(np.int64))
            if len(ids) != meta["num_ids"][name]:
                return None
            fingerprint = meta.get("fingerprints", {}).get(name)  # none in older caches
            splits[name] = Tokens(ids, starts, meta["num_bytes"][name], fingerprint)
    except (OSError, ValueError, KeyError):
        return None
    return splits


def _fingerprint(ids_hash, starts: np.ndarray) -> str:
    return hashlib.sha256(ids_hash.digest() + np.asarray(starts, np.int64).tobytes()).hexdigest()[:32]


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
