"""Read and write .safetensors files: eight bytes of header size, a JSON header, raw tensors.

Written here rather than left to the `safetensors` package, so that a bad file is told in a sentence
that names the tensor, bfloat16 needs no torch, and one tensor at a time is in memory.
https://huggingface.co/docs/safetensors describes the format.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxllm.errors import UserError, brief
from jaxllm.json_file import parse_json
from jaxllm.pretrained.tensors import StoredTensor

_MAX_HEADER = 16 * 2**20  # bytes; a header has about 100 for each tensor
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_FIELDS = {"dtype", "shape", "data_offsets"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def open_safetensors(path: str | os.PathLike) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name, after checking its header; none is read yet.

    Raises:
      UserError: the file cannot be read, is cut short, or its header does not describe its bytes.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise UserError(
                    f"'{path}' is not a whole safetensors file: it has {size} bytes and its header "
                    f"claims {length}; download it again"
                )
            header = _parse(file.read(length), path)
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror or error})") from error
    start, end = 8 + length, 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if start + last > size:
            raise UserError(
                f"the tensor '{name}' ends at byte {start + last} of '{path}', which has only {size}: "
                "the file is cut short; download it again"
            )
        if first != end or last - first != dtype.itemsize * math.prod(shape):
            raise UserError(
                f"the tensor '{name}' in '{path}' has shape {list(shape)} of {entry['dtype']} but the "
                f"bytes {first} to {last}, where {dtype.itemsize * math.prod(shape)} bytes from {end} "
                "on were expected: the file is damaged; download it again"
            )
        end = last
        read = _reader(path, dtype, start + first, shape)
        tensors[name] = StoredTensor(name, shape, entry["dtype"], str(path), read)
    if start + end != size:
        raise UserError(
            f"'{path}' has {size - start - end} bytes after its last tensor: it is damaged; download it again"
        )
    return tensors


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a file, one after the other; none is copied unless its layout needs it.

    Examples:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/model.safetensors"
      >>> write_safetensors(path, {"a": np.arange(6.0).reshape(2, 3)})
      >>> open_safetensors(path)["a"].read().tolist()
      [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        dtype = _NAMES[tensor.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            whole = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
            file.write(whole.reshape(-1).view(np.uint8).data)


def _reader(path: Path, dtype: np.dtype, offset: int, shape: tuple) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if 0 in shape:
            return np.empty(shape, dtype)
        # A map of its own for each tensor: its pages are given back as soon as it is dropped.
        return np.asarray(np.memmap(path, dtype, "r", offset, shape or (1,))).reshape(shape)

    return read


def _parse(text: bytes, path: Path) -> dict[str, dict]:
    """Return the header's entries, each with a known dtype, a shape and two offsets."""
    header = parse_json(text, f"the header of '{path}', which is damaged,")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if len(name) > 256 or not name.isprintable():
            raise UserError(f"the header of '{path}' names a tensor {brief(name)}: the file is damaged")
        if not isinstance(entry, dict) or not _FIELDS <= entry.keys():
            raise UserError(
                f"the header of '{path}' describes the tensor '{name}' by {brief(entry)}; expected its "
                "dtype, shape and data_offsets"
            )
        if not _sizes(entry["shape"]) or len(entry["shape"]) > 8:
            raise UserError(
                f"the tensor '{name}' in '{path}' has the shape {brief(entry['shape'])}; expected a "
                "list of sizes"
            )
        if not _sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise UserError(
                f"the tensor '{name}' in '{path}' has data_offsets {brief(entry['data_offsets'])}; "
                "expected where its bytes begin and end"
            )
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            raise UserError(
                f"the tensor '{name}' in '{path}' has dtype {brief(entry['dtype'])}; expected one of "
                f"{', '.join(_DTYPES)}"
            )
    return header


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
