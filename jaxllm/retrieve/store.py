"""Vectors in memory-mapped files, kept under a digest of what they were made of."""

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from jaxllm.atomic import new_folder, write_file
from jaxllm.errors import UserError
from jaxllm.retrieve.embed import Encoder

DTYPES = ("float32", "float16", "int8")
_ABOUT = "about.json"


@dataclass(frozen=True)
class VectorStore:
    """Vectors on disk. A row's vector is `vectors_ND[row] * scales_N[row]`, or without scales itself."""

    folder: Path
    vectors_ND: np.ndarray  # memory-mapped, in the store's type
    scales_N: np.ndarray | None  # float32, of an int8 store alone
    documents: np.ndarray  # int32 [N], which text a row is a piece of
    encoder: str  # its fingerprint
    texts: int  # how many texts were embedded

    @property
    def dtype(self) -> str:
        """Of the stored numbers: "float32", "float16" or "int8"."""
        return str(self.vectors_ND.dtype)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return self.vectors_ND.shape[1]

    def __len__(self) -> int:
        return len(self.vectors_ND)

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse queries of an encoder that the store was not built with.

        Raises:
          UserError: another width, weights, tokenizer or options.
        """
        if encoder.width != self.width:
            raise UserError(
                f"the store '{self.folder}' holds vectors of width {self.width} and the encoder gives "
                f"{encoder.width}; search it with the encoder that built it, or build another store"
            )
        if encoder.fingerprint != self.encoder:
            raise UserError(
                f"the store '{self.folder}' was built by encoder {self.encoder[:8]}, and this one is "
                f"{encoder.fingerprint[:8]}: other weights, tokenizer or options; build another store"
            )


def build_store(
    folder: str | Path,
    encoder: Encoder,
    texts: Sequence[str],
    *,
    dtype: Literal["float32", "float16", "int8"] = "float32",
    block: int = 1024,
    progress: bool = False,
) -> VectorStore:
    """Return the store of texts' vectors, embedding what an earlier call did not.

    The store lies in FOLDER/DIGEST, a digest of the encoder, the texts and the type. Blocks of texts are
    written as they are done, so that a killed call is resumed; the store itself appears whole or not at all.
    Of several calls at once each takes the store of the first to end.

    Args:
      folder: of stores.
      encoder: what embeds.
      texts: all of them; a later call must give the same to find the store.
      dtype: of the stored numbers; int8 has a scale a row, and loses recall: measure it (`recall`).
      block: texts a file until the store is whole.
      progress: show a bar.

    Raises:
      UserError: no texts, or another dtype.
    """
    if not len(texts):
        raise UserError("no texts to build a store of; give one text at least")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    digest = hashlib.sha256(f"{encoder.fingerprint} {dtype} {len(texts)}".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    final, parts = Path(folder, digest.hexdigest()[:24]), Path(folder, f".blocks-{digest.hexdigest()[:24]}")
    if _is_whole(final):
        return open_store(final)
    files = [(start, parts / f"{start}-{block}.npz") for start in range(0, len(texts), block)]
    try:
        with tqdm(total=len(texts), desc="store", unit=" texts", disable=not progress) as bar:
            for start, file in files:
                if _is_whole(final):
                    break
                if not file.exists():
                    vectors_RD, documents_R = encoder.embed_pieces(texts[start : start + block])
                    write_file(file, _packed(vectors=vectors_RD, documents=documents_R + start))
                bar.update(min(block, len(texts) - start))
        if not _is_whole(final):
            with new_folder(final, _is_whole) as partial:
                _join(partial, [file for _, file in files], dtype, encoder, len(texts))
    except (OSError, UserError):
        if not _is_whole(final):  # or another call was first, and has removed the blocks
            raise
    shutil.rmtree(parts, ignore_errors=True)
    return open_store(final)


def open_store(folder: str | Path) -> VectorStore:
    """Return a store that `build_store` wrote.

    Raises:
      UserError: the folder holds none, or one that is damaged.
    """
    folder = Path(folder)
    if not _is_whole(folder):
        raise UserError(
            f"'{folder}' holds no whole store of vectors; build_store writes one in FOLDER/DIGEST"
        )
    about = json.loads((folder / _ABOUT).read_text())
    mapped = np.load(folder / "vectors.npy", mmap_mode="r")
    scales = np.load(folder / "scales.npy", mmap_mode="r") if about["dtype"] == "int8" else None
    documents = np.load(folder / "documents.npy", mmap_mode="r")
    if mapped.shape != (about["rows"], about["width"]) or len(documents) != about["rows"]:
        raise UserError(
            f"the store '{folder}' says {about['rows']} rows of {about['width']} and holds {mapped.shape}; "
            "remove it and build it again"
        )
    return VectorStore(folder, mapped, scales, documents, about["encoder"], about["texts"])


def to_int8(vectors_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 [N, D], float32 scales [N]): each row on a grid of 255 steps of its own.

    Examples:
      >>> to_int8(np.array([[1.0, -2.0]], np.float32))[0].tolist()
      [[64, -127]]
    """
    scales_N = np.maximum(np.abs(vectors_ND).max(axis=1), 1e-30).astype(np.float32) / 127
    return np.rint(vectors_ND / scales_N[:, None]).astype(np.int8), scales_N


def _packed(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _join(folder: Path, files: list[Path], dtype: str, encoder: Encoder, texts: int) -> None:
    """Write the blocks as one store, a block in memory at a time."""
    counts = []
    for file in files:
        with np.load(file) as part:
            counts.append(len(part["documents"]))
    rows = sum(counts)
    open_new = np.lib.format.open_memmap
    vectors = open_new(folder / "vectors.npy", "w+", dtype=dtype, shape=(rows, encoder.width))
    documents = open_new(folder / "documents.npy", "w+", dtype=np.int32, shape=(rows,))
    scales = None
    if dtype == "int8":
        scales = open_new(folder / "scales.npy", "w+", dtype=np.float32, shape=(rows,))
    at = 0
    for file, count in zip(files, counts, strict=True):
        with np.load(file) as part:
            vectors_RD, documents[at : at + count] = part["vectors"], part["documents"]
        if scales is None:
            vectors[at : at + count] = vectors_RD
        else:
            vectors[at : at + count], scales[at : at + count] = to_int8(vectors_RD)
        at += count
    for array in (vectors, documents, *([] if scales is None else [scales])):
        array.flush()
    about = dict(encoder=encoder.fingerprint, dtype=dtype, rows=rows, width=encoder.width, texts=texts)
    write_file(folder / _ABOUT, json.dumps(about).encode())


def _is_whole(folder: Path) -> bool:
    return (folder / _ABOUT).is_file()  # written last
