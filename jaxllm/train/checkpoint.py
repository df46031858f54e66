"""Checkpoints of a run: state, position in the data and config, written in the background."""

import contextlib
import dataclasses
import logging
import math
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_managers as policies

from jaxllm.errors import UserError
from jaxllm.parallel import is_process_lost
from jaxllm.train.state import TrainState


class Checkpoints:
    """The checkpoints in a folder: the last few, and the best by held-out loss.

    A checkpoint appears under its final name only when it is whole, so a run that is killed at any
    moment finds the last complete one. Saving copies the state to host memory and returns; files
    are written while training goes on.
    """

    def __init__(self, folder, *, keep_last: int = 2, keep_best: int = 1):
        self.folder = Path(folder).absolute()
        keep = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(policies.BestN(get_metric_fn=lambda m: -m["heldout_loss"], n=keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=lambda metrics: metrics["heldout_loss"],
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        with _clear_errors(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Return the step of the checkpoint with the lowest held-out loss, or the newest."""
        return self._manager.best_step() or self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        data: dict[str, Any],
        config: dict[str, Any],
        heldout_loss: float = math.inf,
    ) -> None:
        """Start writing a checkpoint, unless this step has one.

        Args:
          state: saved as a state that has not failed.
          step: updates applied so far, equal to `state.step` without waiting for the device.
          data: where the data iterator stands.
          config: the run's config as plain values.
          heldout_loss: ranks the checkpoint for `best`; infinite if it was not measured.
        """
        if step in self._manager.all_steps():
            return
        with _clear_errors(self.folder):
            self._manager.save(
                step,
                args=ocp_args.Composite(
                    state=ocp_args.StandardSave(_as_dict(state)),
                    data=ocp_args.JsonSave(data),
                    config=ocp_args.JsonSave(config),
                ),
                metrics={"heldout_loss": float(heldout_loss)},
            )

    def config(self, step: int) -> dict[str, Any]:
        """Return the config that a checkpoint was written with."""
        restored = self._manager.restore(step, args=ocp_args.Composite(config=ocp_args.JsonRestore()))
        return restored["config"]

    def restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state, placed as `shapes` says, and the position in the data.

        Args:
          step: which checkpoint.
          shapes: ShapeDtypeStructs with shardings; any mesh, not only the one it was saved from.
        """
        restored = self._manager.restore(
            step,
            args=ocp_args.Composite(
                state=ocp_args.StandardRestore(_as_dict(shapes)), data=ocp_args.JsonRestore()
            ),
        )
        # Placed like the rest: jax would compile the step anew for a state that lies elsewhere.
        failed = jax.numpy.zeros((), bool, device=shapes.failed.sharding)
        return TrainState(**restored["state"], failed=failed), restored["data"]

    def restore_params(self, step: int, shapes):
        """Return the parameters alone, placed as `shapes` (ShapeDtypeStructs) says."""
        item = {"params": shapes}
        restored = self._manager.restore(
            step,
            args=ocp_args.Composite(
                state=ocp_args.PyTreeRestore(
                    item,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                    partial_restore=True,
                )
            ),
        )
        return restored["state"]["params"]

    def wait(self) -> None:
        """Wait until everything saved is on disk."""
        with _clear_errors(self.folder):
            self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is not None and is_process_lost(error):
            return  # closing would wait for the part of a save that a lost process owes
        try:
            with _clear_errors(self.folder):
                self._manager.close()
        finally:
            if error is not None:
                _remove_partial(self.folder)


def check_room(folder, shapes: TrainState, copies: int) -> None:
    """Check that a run's folder can be written and has room for `copies` checkpoints of its state.

    Those that are there already count as some of them.

    Raises:
      UserError: it cannot, or has not; says how much is needed and free.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: every process of a run does this, in the same folder.
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {folder} ({error.strerror}); choose another --out"
        ) from error
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    there = sum(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))
    copies = max(1, copies - there)
    free = shutil.disk_usage(folder).free
    if free < copies * size:
        raise UserError(
            f"{copies} more checkpoints need {copies * size / 1e9:.2f} GB but {folder} has "
            f"{free / 1e9:.2f} GB free; free some, keep fewer, or choose another --out"
        )


def check_shared(folder) -> None:
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
    return Path(folder) / f".shared-{int(number)}"


def _as_dict(state: TrainState) -> dict[str, Any]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    del fields["failed"]
    return fields


@contextlib.contextmanager
def _clear_errors(folder):
    """Say in one sentence that writing failed, and remove what the failed write left behind."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        if is_process_lost(error):
            raise
        _remove_partial(folder)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        raise UserError(
            f"could not write a checkpoint to {folder} ({reason}); the earlier ones are whole: make "
            "room or choose another --out, then run the same command to go on"
        ) from error


def _remove_partial(folder):
    for partial in Path(folder).glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(partial, ignore_errors=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to show a log record: orbax logs, with tracebacks, errors that it also raises."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_news)
