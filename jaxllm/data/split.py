"""Divide a corpus into train and validation, by document."""

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from jaxllm.data.sources import Piece
from jaxllm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """Which documents are for validation, or where the only document is cut.

    Attributes:
      is_valid: bool [documents].
      cut: for a corpus of one document, how many of its characters are for training; else None.
      num_bytes: UTF-8 bytes of all the text.
      copies: of each side, how many documents are the same as an earlier one.
    """

    is_valid: np.ndarray
    cut: int | None
    num_bytes: int
    copies: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"train": 0, "valid": 0})


def split_documents(pieces: Iterable[Piece], name: str, valid_fraction: float) -> Split:
    """Read all the text once and choose about `valid_fraction` of its bytes for validation.

    Documents are taken in the order of a hash of their text, so the choice depends neither on
    their order nor on their names, and copies of a document fall on the same side. Both sides
    get at least one. A corpus of a single document is cut by position instead: its first
    1 - valid_fraction characters train, as in nanoGPT. `name` is for messages.

    Raises:
      UserError: if there is no text, or all the documents are the same.
    """
    hashes, sizes = array("Q"), array("q")
    digest, num_bytes, num_chars = hashlib.blake2b(digest_size=8), 0, 0
    example = None
    for text, ends_document, example in pieces:  # noqa: B007
        encoded = text.encode()
        digest.update(encoded)
        num_bytes += len(encoded)
        num_chars += len(text)
        if ends_document:
            hashes.append(int.from_bytes(digest.digest(), "little"))
            sizes.append(num_bytes)
            digest, num_bytes = hashlib.blake2b(digest_size=8), 0
    total = sum(sizes)
    if not hashes:
        raise UserError(f"the data '{name}' is empty: it holds only blank text; add some")
    if len(hashes) == 1 and example is not None:
        raise UserError(f"'{name}' holds one example, and one is kept for validation; give at least two")
    if len(hashes) == 1:
        cut = int(num_chars * (1 - valid_fraction))
        return Split(np.zeros(1, bool), cut, total)
    groups, group_of = np.unique(np.array(hashes, np.uint64), return_inverse=True)
    if len(groups) == 1:
        raise UserError(
            f"all {len(hashes)} documents of '{name}' are the same, so none can be kept for "
            "validation; give at least two different ones"
        )
    group_bytes = np.bincount(group_of, weights=np.array(sizes))
    reached = int(np.searchsorted(np.cumsum(group_bytes), valid_fraction * total)) + 1
    num_valid = min(reached, len(groups) - 1)
    is_valid = group_of < num_valid
    copies = {"train": int((~is_valid).sum()) - (len(groups) - num_valid),
              "valid": int(is_valid.sum()) - num_valid}  # fmt: skip
    return Split(is_valid, None, total, copies)


def assign(pieces: Iterable[Piece], split: Split) -> Iterator[tuple[str, Piece]]:
    """Yield each piece with the side it is for, "train" or "valid"."""
    if split.cut is not None:
        yield from _by_position(pieces, split.cut)
        return
    document = 0
    for piece in pieces:
        yield "valid" if split.is_valid[document] else "train", piece
        document += piece.ends_document


def _by_position(pieces: Iterable[Piece], cut: int) -> Iterator[tuple[str, Piece]]:
    position = 0
    for text, ends_document, _ in pieces:
        left = cut - position  # Characters still to come for training.
        if left > 0:
            yield "train", Piece(text[:left], left <= len(text))
        if left < len(text):
            yield "valid", Piece(text[max(left, 0) :], ends_document)
        position += len(text)
