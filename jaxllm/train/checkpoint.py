"""Checkpoints of a run: state, position in the data and config, written in the background."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.parallel import is_process_lost
from jaxllm.train.checksum import array_names, checksums
from jaxllm.train.state import TrainState, data_as_keys, keys_as_data

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

# Whoever reads or writes imports orbax then: a quarter of a second that `import jaxllm.text` need not take.

Read = TypeVar("Read")
_SET_ASIDE = "damaged-"  # before the step, in the name of a checkpoint that newer ones take the place of
_PARTIAL = ".orbax-checkpoint-tmp"  # after the step, of one that is being written or deleted


class Damaged(Exception):
    """A checkpoint cannot be read, or is not what was written."""


class Checkpoints:
    """The checkpoints in a folder: the last few, and the best by held-out loss.

    A checkpoint appears under its final name only when it is whole, so a run that is killed at any
    moment finds the last complete one. Saving copies the state to host memory and returns; files
    are written while training goes on. Reading changes nothing in the folder, so a run can be read
    while it trains.

    A checkpoint holds checksums of its arrays, its config and its place in the data. What it is read back
    as is compared with them: `newest_whole` passes over one that is damaged.

    Args:
      folder: of the checkpoints alone.
      keep_last: how many of the newest to keep.
      keep_best: how many of those with the lowest held-out loss.
      keep_steps: those that are kept besides.
      together: all processes of a run read at once, and what one cannot read is damaged for all.
    """

    def __init__(self, folder, *, keep_last: int = 2, keep_best: int = 1,
                 keep_steps: Sequence[int] = (), together: bool = False):  # fmt: skip
        self.folder = Path(folder).absolute()
        self._together = together and jax.process_count() > 1
        self._keep_last, self._keep_best, self._keep_steps = keep_last, keep_best, keep_steps
        self._writer: ocp.AsyncCheckpointer | None = None
        self._losses: dict[int, float] = {}

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order."""
        found = self.folder.glob("*")
        return sorted(int(path.name) for path in found if path.name.isdecimal() and path.is_dir())

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Return the step of the checkpoint with the lowest held-out loss, or the newest."""
        return min(reversed(self.steps()), key=self._loss, default=None)

    def best_loss(self) -> float:
        """Return the lowest held-out loss of a checkpoint; infinite if none was measured."""
        return min(map(self._loss, self.steps()), default=math.inf)

    def newest_whole(
        self, read: Callable[[int], Read], first: int | None = None
    ) -> tuple[int, Read, list[int]]:
        """Read the newest checkpoint that is not damaged, and say on stderr which ones were passed over.

        Args:
          read: reads a checkpoint; what it raises, but for UserError, is taken for damage.
          first: the one to try before the newest.

        Returns:
          (its step, what `read` returned, the damaged ones before it).

        Raises:
          UserError: there is none; names the damage.
        """
        steps = sorted(self.steps(), key=lambda step: (step == first, step), reverse=True)
        damage: dict[int, str] = {}
        for step in steps:
            found, reason = self._try(read, step)
            if reason is None:
                if damage and jax.process_index() == 0:
                    print(f"{_sentence(self.folder, damage)}; taking {step} instead", file=sys.stderr)
                return step, found, sorted(damage)
            if (self.folder / str(step)).is_dir():  # else its run has deleted it meanwhile
                damage[step] = reason
        if not damage and self.steps() and self.steps() != sorted(steps):
            return self.newest_whole(read, first)
        if damage:
            raise UserError(f"{_sentence(self.folder, damage)}; there is no whole one: choose another --out")
        raise UserError(f"{self.folder} holds no finished checkpoint yet; train a few steps more")

    def _try(self, read, step) -> tuple[Any, str | None]:
        """Return (what was read, why it cannot be)."""
        try:
            return read(step), None
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # whatever a damaged file may raise
            if is_process_lost(error):
                raise
            return None, " ".join(str(error).split())[:160] or type(error).__name__

    def _agreed(self, read: Callable[[], Read]) -> Read:
        """Return what `read` returns, or raise in all processes that read together."""
        found, reason = self._try(lambda _: read(), None)
        if self._together:
            whole = multihost_utils.process_allgather(np.int32(reason is None))
            if not whole.all():
                reason = reason or f"process {int(np.argmin(whole))} cannot read it"
        if reason is not None:
            raise Damaged(reason)
        return found

    def set_aside(self, steps: Sequence[int]) -> None:
        """Rename damaged checkpoints, so that newer ones can take their names."""
        if jax.process_index() == 0:
            for step in steps:
                aside = self.folder / f"{_SET_ASIDE}{step}"
                shutil.rmtree(aside, ignore_errors=True)
                with contextlib.suppress(OSError):
                    (self.folder / str(step)).rename(aside)
        for step in steps:
            self._losses.pop(step, None)
        if steps and jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")

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
        if step in self._losses or step in self.steps():
            self.rank(step, heldout_loss)
            return
        import orbax.checkpoint as ocp

        arrays = keys_as_data(_as_dict(state))
        sums = {"arrays": checksums(arrays)}
        sums |= {name: _text_checksum(x) for name, x in (("data", data), ("config", config))}
        with _clear_errors(self.folder):
            if self._writer is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                if jax.process_index() == 0:
                    _remove_partial(self.folder)  # what a killed run was writing
                self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self.wait()
            self._delete_superfluous()
            self._writer.save(
                self.folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    data=ocp.args.JsonSave(data),
                    config=ocp.args.JsonSave(config),
                    checksums=ocp.args.JsonSave(sums),
                    metrics=ocp.args.JsonSave({"heldout_loss": float(heldout_loss)}),
                ),
            )
            self._losses[step] = float(heldout_loss)

    def rank(self, step: int, heldout_loss: float) -> None:
        """Rank a checkpoint, where there is one, that was saved before its held-out loss was measured."""
        if not heldout_loss < math.inf:
            return
        self.wait()
        if step in self.steps():
            if jax.process_index() == 0:
                file = self.folder / str(step) / "metrics" / "metadata"
                write_file(file, json.dumps({"heldout_loss": float(heldout_loss)}).encode())
            self._losses[step] = float(heldout_loss)

    def config(self, step: int) -> dict[str, Any]:
        """Return the config that a checkpoint was written with.

        Raises:
          Damaged: it is not what was written.
        """
        return self._agreed(lambda: self._checked_json(step, "config"))

    def position(self, step: int) -> dict[str, Any]:
        """Return where the data stood, as it was saved.

        Raises:
          Damaged: it is not what was written.
        """
        return self._agreed(lambda: self._checked_json(step, "data"))

    def restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state, placed as `shapes` says, and the position in the data.

        Args:
          step: which checkpoint.
          shapes: ShapeDtypeStructs with shardings; any mesh, not only the one it was saved from.

        Raises:
          Damaged: it is not what was written.
          UserError: it holds other arrays than the run has.
        """
        import orbax.checkpoint as ocp

        position = self.position(step)
        fields = _as_dict(shapes)
        wanted = keys_as_data(fields)
        self._check_names(step, wanted)
        restored = self._agreed(
            lambda: ocp.StandardCheckpointHandler().restore(
                self.folder / str(step) / "state", args=ocp.args.StandardRestore(wanted)
            )
        )
        self._check_arrays(step, restored)
        # Placed like the rest: jax would compile the step anew for a state that lies elsewhere.
        failed = jax.numpy.zeros((), bool, device=shapes.failed.sharding)
        return TrainState(**data_as_keys(restored, fields), failed=failed), position

    def restore_params(self, step: int, shapes):
        """Return the parameters alone, placed as `shapes` (ShapeDtypeStructs) says.

        Raises:
          Damaged: they are not what was written.
        """
        import orbax.checkpoint as ocp

        item = {"params": shapes}
        restored = ocp.PyTreeCheckpointHandler().restore(
            self.folder / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            ),
        )
        self._check_arrays(step, {"params": restored["params"]})
        return restored["params"]

    def wait(self) -> None:
        """Wait until everything saved is on disk."""
        if self._writer is not None:
            with _clear_errors(self.folder):
                self._writer.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if self._writer is None or (error is not None and is_process_lost(error)):
            return  # closing would wait for the part of a save that a lost process owes
        try:
            with _clear_errors(self.folder):
                self._writer.close()
                self._delete_superfluous()
        finally:
            if error is not None:
                _remove_partial(self.folder)

    def _json(self, step: int, name: str) -> dict[str, Any]:
        folder = self.folder / str(step) / name
        file = folder / "metadata"
        file = file if file.exists() else folder / name  # what orbax's manager wrote
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise Damaged(f"its {name} is not what was written")
        return values

    def _checked_json(self, step: int, name: str) -> dict[str, Any]:
        values = self._json(step, name)
        if (sums := self._sums(step)) and sums[name] != _text_checksum(values):
            raise Damaged(f"its {name} differs from its checksum")
        return values

    def _sums(self, step: int) -> dict[str, Any] | None:
        """Return the checksums of a checkpoint; None of one from before there were any."""
        try:
            about = json.loads((self.folder / str(step) / "_CHECKPOINT_METADATA").read_text())
            if "checksums" not in about["item_handlers"]:
                return None
        except (OSError, ValueError, LookupError, TypeError):
            pass  # damaged itself, and nothing else needs it
        return self._json(step, "checksums")

    def _check_names(self, step: int, wanted) -> None:
        if (sums := self._agreed(lambda: self._sums(step))) is None:
            return
        asked, saved = set(array_names(wanted)), sums["arrays"].keys()
        if asked != saved:
            ours, theirs = (_first_names(names) for names in (asked - saved, saved - asked))
            model = any(name.startswith("params") for name in asked ^ saved)
            raise UserError(
                f"the checkpoint {self.folder / str(step)} holds another state than this run has (it has "
                f"{theirs}, the run {ours}); train with the same {'model' if model else 'optimizer'}, or "
                "choose another --out"
            )

    def _check_arrays(self, step: int, tree) -> None:
        if (sums := self._agreed(lambda: self._sums(step))) is None:
            return
        for name, number in checksums(tree).items():
            if sums["arrays"][name] != number:
                raise Damaged(f"{name} differs from its checksum")

    def _loss(self, step: int) -> float:
        """Return the held-out loss of a checkpoint; infinite if it cannot be read."""
        if step not in self._losses:
            try:
                loss = float(self._json(step, "metrics")["heldout_loss"])
            except Exception:  # damaged
                return math.inf
            self._losses[step] = math.inf if math.isnan(loss) else loss
        return self._losses[step]

    def _delete_superfluous(self) -> None:
        """Delete the checkpoints that are neither among the last nor among the best."""
        if jax.process_index() != 0:
            return
        steps = self.steps()
        measured = sorted((s for s in steps if self._loss(s) < math.inf), key=lambda s: (self._loss(s), -s))
        kept = {*steps[-self._keep_last :], *measured[: self._keep_best], *self._keep_steps}
        for step in set(steps) - kept:
            # Renamed first: a run that is killed here must not leave half of one.
            gone = self.folder / f"{step}{_PARTIAL}"
            with contextlib.suppress(OSError):
                (self.folder / str(step)).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _sentence(folder: Path, damage: dict[int, str]) -> str:
    if len(damage) == 1:
        [(step, reason)] = damage.items()
        return f"the checkpoint {folder / str(step)} is damaged ({reason})"
    reasons = "; ".join(f"{step}: {reason}" for step, reason in list(damage.items())[:3])
    return f"the checkpoints {', '.join(map(str, sorted(damage)))} in {folder} are damaged ({reasons})"


def _first_names(names: set[str]) -> str:
    """Name two arrays, parameters before what an optimizer keeps of them, and count the rest."""
    first = sorted(names, key=lambda name: (not name.startswith("params"), name))[:2]
    more = len(names) - len(first)
    return f"{', '.join(first) or 'nothing else'}{f' and {more} more' if more else ''}"


def _text_checksum(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _as_dict(state: TrainState) -> dict[str, Any]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    del fields["failed"], fields["frozen"]
    return fields


@contextlib.contextmanager
def _clear_errors(folder):
    """Say in one sentence that writing failed, and remove what the failed write left behind."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        if is_process_lost(error) or isinstance(error, UserError):
            raise
        _remove_partial(folder)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        raise UserError(
            f"could not write a checkpoint to {folder} ({reason}); the earlier ones are whole: make "
            "room or choose another --out, then run the same command to go on"
        ) from error


def _remove_partial(folder):
    for partial in Path(folder).glob(f"*{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to show a log record: orbax logs, with tracebacks, errors that it also raises."""
    return record.levelno < logging.ERROR or "orbax" not in f"{record.pathname} {record.getMessage()}"


for _logger in ("absl", "asyncio"):  # where its reads are tasks, asyncio tells of those that nobody awaited
    logging.getLogger(_logger).addFilter(_is_news)
