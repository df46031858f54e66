"""Rows out of files that hold one a line: jsonl, csv, tsv; or a list of objects: json."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxllm.data.files import TextFile
from jaxllm.errors import UserError

_MAX_FIRST = 1 << 20  # characters; a list whose first object is longer is text
_MAX_ROW = 1 << 28  # characters; what is longer is no row, but a file without line ends or a quote left open
# A field as csv writers enclose it, with quotes inside it doubled.
_ENCLOSED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


class Row(NamedTuple):
    """Values by column, and how messages call the row."""

    values: dict[str, Any]
    where: str  # "line 3 of 'a.jsonl'"
    source: str  # "'a.jsonl'"


def row_reader(file: TextFile, column: str) -> Callable[[TextFile], Iterator[Row]] | None:
    """Return what reads a file by its suffix; None where it is not rows.

    Other than the rest, .json is text, unless it holds objects with the columns of rows: a list of them, or
    several lines with one each.

    Args:
      file: the file.
      column: the one that holds text.
    """
    suffix = file.path.suffix.lower()
    if suffix == ".json":
        return _json_reader(file, column)
    return {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _tsv}.get(suffix)


def _json_reader(file: TextFile, column: str) -> Callable[[TextFile], Iterator[Row]] | None:
    with open(file.path, encoding=file.encoding) as stream:
        begin = stream.read(_MAX_FIRST).lstrip()
    is_list = begin.startswith("[")
    try:
        first, end = json.JSONDecoder().raw_decode(begin[1:].lstrip() if is_list else begin)
    except (ValueError, RecursionError):
        return None
    columns = {column}, {"messages"}, {"prompt", "completion"}
    if not isinstance(first, dict) or not any(names <= first.keys() for names in columns):
        return None
    lines = begin[:end].count("\n") == 0 and begin[end:].lstrip().startswith("{")
    return _json_list if is_list else _jsonl if lines else None


def _json_list(file: TextFile) -> Iterator[Row]:
    with open(file.path, encoding=file.encoding) as stream:
        text = stream.read(_MAX_ROW + 1)
    if len(text) > _MAX_ROW:
        raise UserError(
            f"'{file.path}' is a list of more than {_MAX_ROW:,} characters; make it .jsonl, one object a line"
        )
    for number, row in enumerate(_parse(text, f"'{file.path}'"), start=1):
        yield _row(row, f"object {number} of '{file.path}'", file)


def _jsonl(file: TextFile) -> Iterator[Row]:
    # Text mode: a line may end with \r or \r\n too, which JSON has no other use for.
    with open(file.path, encoding=file.encoding) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_ROW + 1), ""), start=1):
            if line.isspace():
                continue
            where = f"line {number} of '{file.path}'"
            if len(line) > _MAX_ROW:
                raise UserError(f"{where} has more than {_MAX_ROW:,} characters; expected one object a line")
            try:
                values = _parse(line, where)
            except UserError as error:
                raise UserError(f"{error}{_others_broken(lines, number)}") from error
            yield _row(values, where, file)


def _others_broken(lines, number: int) -> str:
    """Count and name the lines after a broken one that are broken too."""
    others = []
    for later, line in enumerate(lines, start=number + 1):
        try:
            line.isspace() or json.loads(line)
        except (ValueError, RecursionError):
            others.append(later)
    if not others:
        return ""
    names = ", ".join(map(str, others[:5])) + (" ..." if len(others) > 5 else "")
    return f" ({len(others)} more broken: line {names})"


def _row(values: Any, where: str, file: TextFile) -> Row:
    if not isinstance(values, dict):
        raise UserError(
            f"{where} is a JSON {type(values).__name__}; expected an object with a column of text"
        )
    return Row(values, where, f"'{file.path}'")


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply; expected one object a line") from error
    except ValueError as error:  # JSONDecodeError, or a number of more digits than Python reads
        reason = getattr(error, "msg", f"{error}".partition(";")[0])
        raise UserError(f"{where} is not JSON ({reason}); expected one object a line") from error


def _csv(file: TextFile) -> Iterator[Row]:
    # Strict: a quote left open would else take in the rows up to the next quote, or the end.
    return _named(file, delimiter=",", strict=True)


def _tsv(file: TextFile) -> Iterator[Row]:
    enclosing = dict(strict=True) if _quotes_enclose(file) else dict(quoting=csv.QUOTE_NONE)
    return _named(file, delimiter="\t", **enclosing)


def _quotes_enclose(file: TextFile) -> bool:
    """Say whether quotes in a tsv enclose fields, as csv writers put them, or are text.

    TSV as registered (IANA) knows no quoting, so they are text if every line then has the columns of the
    first, unless it is plain that a writer put them: around the names of the columns, or doubled inside
    an enclosed field.
    """
    width, is_plain, is_written = None, True, False
    for row, _ in _fields(file, delimiter="\t", quoting=csv.QUOTE_NONE):
        if width is None:
            width = len(row)
            is_written = all(len(name) > 1 and name[0] == name[-1] == '"' for name in row)
        is_plain = is_plain and len(row) == width
        is_written = is_written or any('""' in field and _ENCLOSED.fullmatch(field) for field in row)
        if not is_plain:
            break
    if is_plain and not is_written:
        return False
    try:
        widths = {len(row) for row, _ in _fields(file, delimiter="\t", strict=True)}
    except UserError:
        return False
    return len(widths) == 1


def _named(file: TextFile, **dialect) -> Iterator[Row]:
    """Yield the rows of a file whose first line names the columns."""
    rows = _fields(file, **dialect)
    names, _ = next(rows, ([], 0))
    for row, line in rows:
        where = f"line {line} of '{file.path}'"
        # A delimiter or a line end that should have been quoted moves text into other columns.
        if len(row) < len(names) or any(row[len(names) :]):
            raise UserError(f"{where} has {len(row)} columns; expected {len(names)}, as in its first line")
        yield Row(dict(zip(names, row, strict=False)), where, f"'{file.path}'")


def _fields(file: TextFile, **dialect) -> Iterator[tuple[list[str], int]]:
    """Yield (fields, number of the line where they begin); blank lines are left out."""
    csv.field_size_limit(_MAX_ROW)  # The default refuses documents past 128 KiB.
    line = 1
    with open(file.path, encoding=file.encoding, newline="") as stream:
        rows = csv.reader(stream, **dialect)
        try:
            for row in rows:
                if row:
                    yield row, line
                line = rows.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"the row that begins in line {line} of '{file.path}' cannot be parsed ({error}); expected "
                "quotes only around a whole field, doubled inside it"
            ) from error
