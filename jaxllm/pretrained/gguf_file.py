"""Read a GGUF file: its metadata, and where each tensor lies.

The container is parsed here, against the file's size at every step, because a file may lie about
its counts; the `gguf` package turns quantised blocks into numbers.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format.
"""

import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.errors import UserError, brief
from jaxllm.pretrained.tensors import StoredTensor

_MAX_METADATA = 64 * 2**20  # bytes; a vocabulary of 150,000 tokens takes 10 million
_SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"]))
_SCALARS |= {10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_PLAIN = {  # tensor types whose numbers numpy reads as they are
    0: ("F32", np.dtype("<f4")),
    1: ("F16", np.dtype("<f2")),
    24: ("I8", np.dtype("i1")),
    25: ("I16", np.dtype("<i2")),
    26: ("I32", np.dtype("<i4")),
    27: ("I64", np.dtype("<i8")),
    28: ("F64", np.dtype("<f8")),
    30: ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says before its tensors' numbers."""

    path: Path
    metadata: dict[str, Any]  # numbers, booleans, strings, numpy arrays, lists of strings
    tensors: dict[str, StoredTensor]  # shapes in numpy's order: [out, in]


def open_gguf(path: str | os.PathLike) -> GgufFile:
    """Return the metadata of a GGUF file and its tensors, none of which is read yet.

    Raises:
      UserError: the file cannot be read, is not GGUF, is cut short or damaged, or is quantised
        in a way that the `gguf` package, if it is installed, does not know.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24 or file.read(4) != b"GGUF":
                raise UserError(f"'{path}' is not a GGUF file: it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _parse(path, _Cursor(path, content, size))
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror or error})") from error


class _Cursor:
    """A place in the file that moves on as things are read, never past the end."""

    def __init__(self, path: Path, content: mmap.mmap, size: int):
        self.path, self.content, self.size, self.offset = path, content, size, 4

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; return where they began."""
        begin, end = self.offset, self.offset + count
        if end > min(self.size, _MAX_METADATA):
            raise UserError(
                f"the header of '{self.path}' asks for {count} bytes at {begin} of {self.size}: the file "
                "is cut short or damaged; download it again"
            )
        self.offset = end
        return begin

    def number(self, kind: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self.content, dtype, 1, self.skip(dtype.itemsize))[0].item()

    def count(self) -> int:
        return struct.unpack_from("<Q", self.content, self.skip(8))[0]

    def string(self) -> str:
        count = self.count()
        begin = self.skip(count)
        try:
            return self.content[begin : begin + count].decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"the header of '{self.path}' has text at byte {begin} that is not UTF-8: the file is "
                "damaged; download it again"
            ) from error

    def name(self) -> str:
        name = self.string()
        if len(name) > 256 or not name.isprintable():
            raise UserError(
                f"the header of '{self.path}' has the name {brief(name)} before byte {self.offset}: the file "
                "is damaged"
            )
        return name

    def value(self) -> Any:
        kind = self.number("<u4")
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _ARRAY:
            kind, count = self.number("<u4"), self.count()
            if kind == _STRING:
                return [self.string() for _ in range(count)]  # ends at the end of the file
            if kind in _SCALARS:
                dtype = np.dtype(_SCALARS[kind])
                begin = self.skip(dtype.itemsize * count)
                return np.frombuffer(self.content, dtype, count, begin).copy()
        raise UserError(
            f"the header of '{self.path}' has a value of unknown type {kind} before byte {self.offset}: "
            "the file is damaged"
        )


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    version = cursor.number("<u4")
    if version not in (2, 3):
        raise UserError(f"'{path}' is GGUF version {version}; expected 2 or 3, little-endian")
    tensor_count, value_count = cursor.count(), cursor.count()
    metadata = {}
    for _ in range(value_count):
        name = cursor.name()
        metadata[name] = cursor.value()
    found = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise UserError(f"'{path}' says alignment={alignment!r}; expected a power of two")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in found:
        if name in tensors:
            raise UserError(f"'{path}' has two tensors called '{name}': the file is damaged")
        tensors[name] = _locate(path, name, shape, kind, start + offset, cursor.size)
    return GgufFile(path, metadata, tensors)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = cursor.name(), cursor.number("<u4")
    if dims > 4:
        raise UserError(
            f"the tensor '{name}' in '{cursor.path}' has {dims} axes; expected at most 4: the file is damaged"
        )
    shape = tuple(cursor.count() for _ in range(dims))[::-1]
    return name, shape, cursor.number("<u4"), cursor.count()


def _locate(path, name: str, shape: tuple[int, ...], kind: int, begin: int, size: int) -> StoredTensor:
    """Return the tensor whose bytes begin at `begin`, after checking that they are there."""
    if kind in _PLAIN:
        type_name, dtype = _PLAIN[kind]
        block, block_bytes, decode = 1, dtype.itemsize, lambda rows: rows.view(dtype)
    else:
        type_name, block, block_bytes, decode = _quantised(path, name, kind)
    *rows, row = shape or (1,)
    if row % block:
        raise UserError(
            f"the tensor '{name}' in '{path}' has rows of {row} numbers, but {type_name} stores them by "
            f"{block}: the file is damaged"
        )
    in_bytes = (*rows, row // block * block_bytes)
    total = math.prod(in_bytes)
    end = begin + total
    if end > size:
        raise UserError(
            f"the tensor '{name}' ends at byte {end} of '{path}', which has only {size}: the file is cut "
            "short; download it again"
        )

    def read() -> np.ndarray:
        if total == 0:
            return np.empty(shape, np.float32)
        with np.errstate(all="ignore"):
            return decode(np.asarray(np.memmap(path, np.uint8, "r", begin, in_bytes))).reshape(shape)

    return StoredTensor(name, shape, type_name, str(path), read)


def _quantised(path: Path, name: str, kind: int) -> tuple[str, int, int, Callable]:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            f"the tensor '{name}' in '{path}' is quantised (type {kind}), which needs one more package: "
            "pip install 'jaxllm[gguf]'"
        ) from error
    known = {int(one): one for one in gguf.quants._type_traits}
    if kind not in known:
        raise UserError(
            f"the tensor '{name}' in '{path}' has the type {kind}; expected one that the gguf package "
            f"reads, such as {', '.join(one.name for one in list(known.values())[:6])}"
        )
    block, block_bytes = gguf.GGML_QUANT_SIZES[known[kind]]
    return known[kind].name, block, block_bytes, lambda rows: gguf.quants.dequantize(rows, known[kind])
