"""Files and folders that appear whole or not at all, and disk errors told in one sentence."""

import contextlib
import errno
import io
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxllm.errors import UserError
from jaxllm.user_cache import user_cache_folder

_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_REFUSED = errno.EACCES, errno.EPERM, errno.EROFS


@contextlib.contextmanager
def new_folder(final: Path, is_whole: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` if the block ends well, and vanishes if not.

    Several processes may fill the same `final` at once: the first to finish wins. With `is_whole` the
    name is a hash of the content: the others' work is the same and is dropped, and a `final` that
    exists but is not whole, as `is_whole` says, is replaced.

    Raises:
      UserError: naming the folder, when the disk is full or the folder cannot be written; without
        `is_whole`, when something is there.
    """
    with _told(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final.parent)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=final.parent))
        partial.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from other users.
    try:
        with _told(final.parent, partial):
            yield partial
        with _told(final.parent):
            try:
                os.replace(partial, final)
            except OSError as error:
                if is_whole is None:
                    reason = error.strerror or error
                    raise UserError(
                        f"nothing was written to '{final}' ({reason}); give a new folder"
                    ) from error
                if not is_whole(final):
                    shutil.rmtree(final, ignore_errors=True)
                    os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Write a file atomically, making its folder first.

    Raises:
      UserError: naming the folder, when the disk is full or the folder cannot be written.
    """
    with new_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield where to write what becomes the file `path` if the block ends well, and vanishes if not.

    Raises:
      UserError: naming the folder, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(_PARTIAL + secrets.token_hex(8))
    with _told(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
    try:
        with _told(path.parent, partial):
            yield partial
        with _told(path.parent):
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_figure(path: str | os.PathLike, figure, dpi: int = 110) -> None:
    """Write a matplotlib figure as PNG, as `write_file` does."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_file(path, content.getvalue())


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes wrote into for the last time a day ago or earlier."""
    for partial in folder.glob(_PARTIAL + "*"):
        with contextlib.suppress(OSError):
            written = max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))
            if time.time() - written > _STALE_SECONDS:
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink()


@contextlib.contextmanager
def _told(folder: Path, partial: Path | None = None) -> Iterator[None]:
    """Tell errors in a sentence; of a caller's block that fills `partial`, those of writing there alone."""
    try:
        yield
    except OSError as error:
        if partial is not None and not _is_of_writing(error, partial):
            raise
        raise _cannot_write(folder, error) from error


def _is_of_writing(error: OSError, partial: Path) -> bool:
    if error.filename is None:  # a write into an open file names none
        return error.errno in _FULL
    return error.errno in (*_FULL, *_REFUSED) and Path(str(error.filename)).is_relative_to(partial)


def _cannot_write(folder: Path, error: OSError) -> UserError:
    choose = "choose a folder that can be written"
    with contextlib.suppress(UserError):
        if folder.is_relative_to(user_cache_folder()):
            choose = "set the environment variable XDG_CACHE_HOME to a folder that can be written"
    reason = error.strerror or error
    return UserError(f"cannot write in the folder '{folder}' ({reason}); free some space there, or {choose}")
