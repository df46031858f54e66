"""Where text comes from: the embedded corpus, files of text or of rows, TFDS, or the datasets library.

A source is read as a stream of pieces, so that a file of any size passes through a few hundred
kilobytes of memory. Long documents are cut in pieces just before a space that follows a word:
there no byte-level BPE with GPT-2's or Llama 3's word pattern, and no byte or character
tokenizer, can tell a cut text from a whole one, so token ids do not depend on the cuts. (Text
with no such space for 64 Ki characters is cut anyway, and a tokenizer.json that marks the start of
each text, as SentencePiece's do, adds its mark at each cut.)
"""

import codecs
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jaxllm.data import embedded
from jaxllm.data.chat import ChatTemplate
from jaxllm.data.examples import TEXT, Example, row_example, row_kind, row_text
from jaxllm.data.files import TextFile, find_text
from jaxllm.data.rows import Row, row_reader
from jaxllm.errors import UserError

_READ_BYTES = 1 << 18  # Larger blocks leave holes in the heap that grow with the file.
_PIECE_CHARS = 1 << 16
# Plain-text dumps of many documents (TinyStories, say) put this, on its own line, between them.
_SEPARATOR = "<|endoftext|>"
_LINE_ENDS = "\r\n\x85\u2028\u2029"
_DEFAULT_COLUMN = "text"


class Piece(NamedTuple):
    """A stretch of a document, and whether the document ends with it; or an example, always whole."""

    text: str
    ends_document: bool
    example: Example | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus that can be read more than once.

    Attributes:
      name: how messages call it.
      fingerprint: a hash of everything that `pieces` yields, the template of its messages aside.
      pieces: starts a new pass over all documents, in order.
      kind: what they are: "text", "prompt and completion", or "messages".
    """

    name: str
    fingerprint: str
    pieces: Callable[[], Iterator[Piece]]
    kind: str = TEXT


def open_source(
    source: str | os.PathLike, text_column: str | None = None, template: ChatTemplate | None = None
) -> Source:
    """Find a source and hash its content; of rows the first is read, to see what they hold.

    Args:
      source: "sotu", "tfds:NAME" or "tfds:NAME:SPLIT", "hf:NAME" (see `hf_source.open_dataset`), or a file, a
        folder or a pattern such as "books/*.txt" (see `files.find_text`). Files that end in .jsonl, .ndjson,
        .csv or .tsv hold a document a row, and so does a .json file that is a list of objects with the
        columns below; any other file is text, one document, or several separated by "<|endoftext|>".
        Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark.
      text_column: the column (or feature) that holds the text. If not given, rows with a column "messages"
        are conversations, those with "prompt" and "completion" are examples, and others hold "text".
      template: writes messages as text.

    Raises:
      UserError: if there is nothing there, or no text in it.
    """
    name = os.fspath(source)
    column = text_column or _DEFAULT_COLUMN
    if name == "sotu":
        return Source("sotu", embedded.SHA256["sotu.jsonl"], _read_sotu)
    if name.startswith("tfds:"):
        from jaxllm.data import tfds_source

        dataset = tfds_source.open_dataset(name, column)
        return Source(name, dataset.fingerprint, lambda: _documents(dataset.texts()))
    if name.startswith("hf:"):
        from jaxllm.data import hf_source

        dataset = hf_source.open_dataset(name, text_column)
        kind = row_kind(next(dataset.rows()), text_column)
        pieces = lambda: _read_rows(dataset.rows(), kind, column, template)
        return Source(name, dataset.fingerprint, pieces, kind)
    files, fingerprint = find_text(name, text_column or "")
    kind = _kind_of(files, name, text_column)
    return Source(name, fingerprint, lambda: _read_files(files, kind, column, template), kind)


def read_documents(source: str | os.PathLike, text_column: str | None = None) -> Iterator[str]:
    """Yield each document of a source, whole; arguments and errors are those of `open_source`."""
    parts: list[str] = []
    for piece in open_source(source, text_column).pieces():
        parts.append(piece.text)
        if piece.ends_document:
            yield "".join(parts)
            parts = []


def _kind_of(files: list[TextFile], name: str, column: str | None) -> str:
    """Return what all the files hold."""
    kinds: dict[str, TextFile] = {}
    for file in files:
        rows = row_reader(file, column or _DEFAULT_COLUMN)
        first = next(rows(file), None) if rows else None
        if first is not None or not rows:
            kinds.setdefault(row_kind(first, column) if first else TEXT, file)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} (in '{file.path}')" for kind, file in kinds.items())
        raise UserError(f"'{name}' holds {found}; give files of one kind")
    return next(iter(kinds), TEXT)


def _read_files(
    files: list[TextFile], kind: str, column: str, template: ChatTemplate | None
) -> Iterator[Piece]:
    for file in files:
        try:
            rows = row_reader(file, column)
            yield from _read_rows(rows(file), kind, column, template) if rows else _read_text(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"'{file.path}' changed while it was read; start again") from error


def _read_rows(rows: Iterable[Row], kind: str, column: str, template: ChatTemplate | None) -> Iterator[Piece]:
    if kind == TEXT:
        yield from _documents(row_text(row, column) for row in rows)
        return
    for row in rows:
        example = row_example(row, kind, template)
        yield Piece(example.text, True, example)


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


def _read_text(file: TextFile) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder(file.encoding)()
    pending = ""
    begun = False  # Some of the current document has been yielded.
    separated = False  # A separator came before it, so line ends at its start belong to that.
    with open(file.path, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            *ended, rest = (pending + decoder.decode(block)).split(_SEPARATOR)
            for text in ended:
                yield from _last_piece(text.rstrip(_LINE_ENDS), begun, separated)
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
    return text.lstrip(_LINE_ENDS) if separated and not begun else text
