"""The folder of a run: where it is, whether it can be written, and who may write it."""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm.errors import UserError
from jaxllm.train.state import TrainState

CONFIG_FILE = "config.json"  # what the run was told
_LOCK_FILE = ".lock"


def run_folder(name: str | os.PathLike) -> Path:
    """Return the path of a run's folder.

    Raises:
      UserError: it is empty, or an address (gs://, s3://) and not a folder.
    """
    name = os.fspath(name)
    if not name:
        raise UserError("out is empty; give the folder of the run")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        raise UserError(
            f"'{name[:200]}' is an address and a run needs a folder; mount it (gcsfuse, mountpoint-s3) and "
            "give the folder where it is mounted"
        )
    return Path(name).expanduser()


def check_room(folder: Path, shapes: TrainState, copies: int) -> None:
    """Check that a run's folder can be written and has room for `copies` checkpoints of its state.

    Those that are there already count as some of them.

    Raises:
      UserError: it cannot, or has not; says how much is needed and free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: every process of a run does this, in the same folder.
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {folder} ({error.strerror}); choose another --out"
        ) from error
    saved = dataclasses.replace(shapes, frozen=None)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(saved))
    there = sum(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))
    copies = max(1, copies - there)
    free = shutil.disk_usage(folder).free
    if free < copies * size:
        raise UserError(
            f"{copies} more checkpoints need {copies * size / 1e9:.2f} GB but {folder} has "
            f"{free / 1e9:.2f} GB free; free some, keep fewer, or choose another --out"
        )


def check_shared(folder: Path) -> None:
    """Check that all processes of a run see the same folder, where each writes its part of a checkpoint.

    Raises:
      UserError: in every process, if one of them does not find a file that process 0 made.
    """
    if jax.process_count() == 1:
        return
    number = np.int32(secrets.randbits(31))
    if jax.process_index() == 0:
        _mark(folder, number).touch()
    number = multihost_utils.broadcast_one_to_all(number)
    found = multihost_utils.process_allgather(np.int32(_mark(folder, number).exists()))
    if jax.process_index() == 0:
        _mark(folder, number).unlink()
    if not found.all():
        raise UserError(
            f"process {int(np.argmin(found))} does not see what process 0 writes to {folder}; choose an "
            "--out that all hosts share (NFS, Filestore, a mounted bucket)"
        )


def _mark(folder, number) -> Path:
    return folder / f".shared-{int(number)}"


@contextlib.contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Keep other trainers out of a run's folder while the block runs.

    The lock is the system's (flock), and goes when its process does, however that ends: a lock file that is
    left behind locks nobody out. A file system without such locks, as some mounted buckets are, keeps
    nobody out. Of a run of several processes the first one asks for all.

    Raises:
      UserError: in every process, if another trainer is at work in the folder; names it.
    """
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(_locked(folder / _LOCK_FILE)) if jax.process_index() == 0 else ""
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(other))):
            other = other or "process 0 says which"
        if other:
            raise UserError(
                f"another training run is writing to {folder} ({other}); wait until it ends, or choose "
                "another --out"
            )
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[str]:
    """Hold a lock; yield "" with it, or without it who has it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield ""
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read(200).strip() or "its process is not known"
            return
        except OSError:  # this file system has no locks
            yield ""
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield ""
