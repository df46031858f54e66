"""Where text comes from: the embedded corpus, a file, a folder, jsonl, csv, tsv, or TFDS.

A source is read as a stream of pieces, so that a file of any size passes through a few hundred
kilobytes of memory. Long documents are cut in pieces just before a space that follows a word:
there no byte-level BPE with GPT-2's or Llama 3's word pattern, and no byte or character
tokenizer, can tell a cut text from a whole one, so token ids do not depend on the cuts. (Text
with no such space for 64 Ki characters is cut anyway, and a tokenizer.json that marks the start of
each text, as SentencePiece's do, adds its mark at each cut.)
"""

import codecs
import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxllm.data import embedded
from jaxllm.errors import UserError, unknown

_READ_BYTES = 1 << 18  # Larger blocks leave holes in the heap that grow with the file.
_PIECE_CHARS = 1 << 16
# Plain-text dumps of many documents (TinyStories, say) put this, on its own line, between them.
_SEPARATOR = "<|endoftext|>"
_DEFAULT_COLUMN = "text"


class Piece(NamedTuple):
    """A stretch of a document, and whether the document ends with it."""

    text: str
    ends_document: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus that can be read more than once.

    Attributes:
      name: how messages call it.
      fingerprint: a hash of everything that `pieces` yields.
      pieces: starts a new pass over all documents, in order.
    """

    name: str
    fingerprint: str
    pieces: Callable[[], Iterator[Piece]]


def open_source(source: str | os.PathLike, text_column: str | None = None) -> Source:
    """Find a source and hash its content; no text is parsed yet.

    Args:
      source: "sotu", "tfds:NAME" or "tfds:NAME:SPLIT", or the path of a file or a folder. Files
        that end in .jsonl, .ndjson, .csv or .tsv hold a document a row; any other file is UTF-8
        text, one document, or several separated by "<|endoftext|>".
      text_column: the column (or feature) that holds the text; "text" if not given.

    Raises:
      UserError: if there is nothing there, or it is empty.
    """
    name = os.fspath(source)
    column = text_column or _DEFAULT_COLUMN
    if name == "sotu":
        return Source("sotu", embedded.SHA256["sotu.jsonl"], _read_sotu)
    if name.startswith("tfds:"):
        from jaxllm.data import tfds_source

        dataset = tfds_source.open_dataset(name, column)
        return Source(name, dataset.fingerprint, lambda: _documents(dataset.texts()))
    root = Path(name)
    if not root.exists():
        if os.sep in name or "." in name:
            raise UserError(
                f"no data at '{name}'; expected a file or folder of text, jsonl, csv or tsv, "
                "'tfds:NAME', or 'sotu' (embedded)"
            )
        raise unknown("data source", name, ["sotu", "tfds:NAME", "the path of a file or folder"])
    files = _files(root)
    if not files or not any(file.stat().st_size for file in files):
        what = "folder" if root.is_dir() else "file"
        raise UserError(f"the data {what} '{name}' is empty; put text in it, or name another")
    return Source(name, _hash_files(root, files, column), lambda: _read_files(files, column))


def _files(root: Path) -> list[Path]:
    """Return the files under `root` in a fixed order, hidden ones left out."""
    if not root.is_dir():
        return [root]
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _hash_files(root: Path, files: list[Path], column: str) -> str:
    digest = hashlib.sha256(column.encode())
    for file in files:
        # The suffix decides how a file is parsed; its place decides the documents' order.
        place = file.relative_to(root).as_posix() if file != root else file.suffix
        digest.update(f"\0{place}\0".encode(errors="surrogateescape"))
        try:
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"cannot read '{file}' ({error.strerror}); check its permissions"
            ) from error
    return digest.hexdigest()


def _read_files(files: list[Path], column: str) -> Iterator[Piece]:
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv}
    for file in files:
        rows = readers.get(file.suffix.lower())
        try:
            yield from _documents(rows(file, column)) if rows else _read_text(file)
        except UnicodeDecodeError as error:
            raise UserError(
                f"'{file}' is not UTF-8 ({error.reason}, byte {error.object[error.start]:#04x})"
                "; convert it, or give text, jsonl, csv or tsv"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot read '{file}' ({error.strerror}); check its permissions"
            ) from error


def _read_sotu() -> Iterator[Piece]:
    return _documents(address["text"] for address in embedded.sotu_addresses())


def _documents(texts: Iterable[str]) -> Iterator[Piece]:
    """Yield the pieces of whole documents; blank ones are dropped."""
    for text in texts:
        if text and not text.isspace():
            *pieces, last = _cut(text, keep=0)
            yield from (Piece(piece, False) for piece in pieces)
            yield Piece(last, True)


def _cut(text: str, keep: int) -> Iterator[str]:
    """Yield `text` in pieces of at most _PIECE_CHARS; the last may be longer by `keep`.

    Examples:
      >>> pieces = list(_cut("word " * 20_000, keep=0))
      >>> [len(piece) for piece in pieces], pieces[1][:6]
      ([65534, 34466], ' word ')
    """
    start = 0
    while len(text) - start > _PIECE_CHARS + keep:
        end = start + _PIECE_CHARS
        cut = text.rfind(" ", start + 1, end)
        while cut > 0 and (text[cut - 1].isspace() or text[cut + 1].isspace()):
            cut = text.rfind(" ", start + 1, cut)
        end = cut if cut > 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


def _read_text(file: Path) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    pending = ""
    begun = False  # Some of the current document has been yielded.
    separated = False  # A separator came before it, so newlines at its start belong to that.
    with open(file, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            *ended, rest = (pending + decoder.decode(block)).split(_SEPARATOR)
            for text in ended:
                yield from _last_piece(text.rstrip("\n"), begun, separated)
                begun, separated = False, True
            # What stays pending is long enough that a separator across blocks is never cut.
            *pieces, pending = _cut(rest, keep=_PIECE_CHARS)
            for piece in pieces:
                yield Piece(_clean_start(piece, begun, separated), False)
                begun = True
    decoder.decode(b"", final=True)
    yield from _last_piece(pending, begun, separated)


def _last_piece(text: str, begun: bool, separated: bool) -> Iterator[Piece]:
    if begun:
        yield Piece(text, True)
    else:
        yield from _documents([_clean_start(text, begun, separated)])


def _clean_start(text: str, begun: bool, separated: bool) -> str:
    return text.lstrip("\n") if separated and not begun else text


def _jsonl(file: Path, column: str) -> Iterator[str]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"line {number} of '{file}' is not JSON ({error.msg}); expected one "
                    "object a line"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"line {number} of '{file}' is a JSON {type(row).__name__}; expected an object "
                    f"with the column '{column}'"
                )
            if column not in row:
                raise _no_column(file, column, row)
            if not isinstance(row[column], str):
                raise UserError(
                    f"line {number} of '{file}' has {row[column]!r:.40} in the column '{column}'; "
                    "expected a string"
                )
            # JSON can hold half of a UTF-16 pair (\ud800), which no encoding can carry.
            yield row[column].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _csv(file: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # The default refuses documents past 128 KiB.
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with open(file, encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, delimiter=delimiter)
        try:
            names = next(rows, [])
            if column not in names:
                raise _no_column(file, column, names)
            index = names.index(column)
            for row in rows:
                if len(row) > index:
                    yield row[index]
                elif row:
                    raise UserError(
                        f"line {rows.line_num} of '{file}' has {len(row)} columns; expected "
                        f"{len(names)}, as in its first line"
                    )
        except csv.Error as error:
            raise UserError(
                f"line {rows.line_num} of '{file}' cannot be parsed ({error}); expected rows "
                f"separated by {'tabs' if delimiter == chr(9) else 'commas'}"
            ) from error


def _no_column(file: Path, column: str, names: Iterable[str]) -> UserError:
    error = unknown("text column", column, names)
    return UserError(f"{error} (in '{file}'); name one with text_column")
