"""The files of a corpus: found by a path, a folder or a pattern, checked to be text, and hashed."""

import codecs
import glob
import hashlib
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from jaxllm.errors import UserError, unknown

_HASH_BYTES = 1 << 20
# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_NAMED = 5  # skipped files that a warning names; it counts the others


class TextFile(NamedTuple):
    """A file whose bytes are known to decode."""

    path: Path
    encoding: str  # UTF-8, or what its byte order mark says; the mark is no text


def find_text(name: str, key: str) -> tuple[list[TextFile], str]:
    """Return the text files at `name`, in a fixed order, and a hash of their content and order.

    Of a folder or a pattern, files that are not text are left out with one warning that counts and
    names them. Links are followed, each folder read once; hidden files are left out.

    Args:
      name: the path of a file or a folder, or a pattern ("*", "?", "[]", "**"); "~" is the home folder.
      key: what else decides how the files are read: a part of the hash.

    Raises:
      UserError: there is nothing, nothing but empty or binary files, or something unreadable.
    """
    path = os.path.expanduser(name)
    root, files, skipped = Path(path), [], []
    if os.path.isdir(path):
        files, skipped = _walk(root)
    elif os.path.isfile(path):
        files = [root]
    elif os.path.exists(path):
        raise UserError(f"'{name}' is a pipe or a device, and data is read more than once; save it to a file")
    elif glob.has_magic(path):
        root, files, skipped = _match(path)
    else:
        raise _nothing(name)
    what = "file" if files == [root] else "folder"
    if not any(file.stat().st_size for file in files):
        raise UserError(f"the data {what} '{name}' is empty; put text in it, or name another")
    texts, digest = [], hashlib.sha256(key.encode())
    for file in files:
        encoding, content, problem = _check(file)
        if problem is None:
            # The suffix decides how a file is parsed; its place decides the documents' order.
            place = file.relative_to(root).as_posix() if file != root else file.suffix
            digest.update(f"\0{place}\0".encode(errors="surrogateescape"))
            digest.update(content)
            texts.append(TextFile(file, encoding))
        elif what == "file":
            raise UserError(f"'{file}' {problem}; convert it, or give text, jsonl, csv or tsv")
        else:
            skipped.append(f"'{file}' {problem}")
    if skipped:
        names = "; ".join(skipped[:_NAMED]) + ("; ..." if len(skipped) > _NAMED else "")
        told = f"{len(skipped)} of {len(texts) + len(skipped)} files in '{name}'"
        if not texts:
            raise UserError(f"no text in '{name}': {names}; convert them, or name another folder")
        warnings.warn(f"skipped {told}: {names}", stacklevel=2)
    return texts, digest.hexdigest()


def _nothing(name: str) -> UserError:
    if os.sep in name or "." in name:
        return UserError(
            f"no data at '{name}'; expected a file or folder of text, jsonl, csv or tsv, a pattern such as "
            "'books/*.txt', 'tfds:NAME', or 'sotu' (embedded)"
        )
    return unknown("data source", name, ["sotu", "tfds:NAME", "the path of a file or folder"])


def _walk(root: Path) -> tuple[list[Path], list[str]]:
    """Return (the files under `root`, what is there and is no file)."""

    def refuse(error):
        raise UserError(
            f"cannot read the folder '{error.filename}' ({error.strerror}); check its permissions"
        ) from error

    files, skipped = [], []
    seen = {os.path.realpath(root)}  # A link may lead back to where it lies.
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        shown = sorted(name for name in subfolders if not name.startswith("."))
        subfolders.clear()
        for name in shown:
            real = os.path.realpath(os.path.join(folder, name))
            if real not in seen:
                seen.add(real)
                subfolders.append(name)
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file():
                files.append(path)
            else:
                skipped.append(f"'{path}' {'is a broken link' if path.is_symlink() else 'is not a file'}")
    return sorted(files), sorted(skipped)


def _match(pattern: str) -> tuple[Path, list[Path], list[str]]:
    """Return (the folder above the pattern, the files that match or lie in a match, what is no file)."""
    parts = Path(pattern).parts
    root = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    files, skipped = set(), set()
    for match in map(Path, glob.glob(pattern, recursive=True)):
        found = _walk(match) if match.is_dir() else ([match], [])
        files.update(found[0])
        skipped.update(found[1])
    if not files:
        raise UserError(f"no data matches '{pattern}'; check the pattern, or name a file or a folder")
    return root, sorted(files), sorted(skipped)


def _check(file: Path) -> tuple[str, bytes, str | None]:
    """Return (encoding, SHA-256 of the content, why it is not text or None)."""
    digest, problem = hashlib.sha256(), None
    try:
        with open(file, "rb") as stream:
            block = stream.read(_HASH_BYTES)
            encoding = next((e for mark, e in _MARKS.items() if block.startswith(mark)), "utf-8-sig")
            decoder = codecs.getincrementaldecoder(encoding)()
            if encoding == "utf-8-sig" and b"\0" in block:
                problem = "is not text (it holds zero bytes)"
            while problem is None and block:
                digest.update(block)
                decoder.decode(block)
                block = stream.read(_HASH_BYTES)
            if problem is None:
                decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        code = encoding.removesuffix("-sig").upper()
        problem = f"is not {code} ({error.reason}, byte {error.object[error.start]:#04x})"
    except OSError as error:
        raise UserError(f"cannot read '{file}' ({error.strerror}); check its permissions") from error
    return encoding, digest.digest(), problem
