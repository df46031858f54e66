"""Where a run begins: at its newest whole checkpoint, another run's, given parameters, or from nothing."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxllm.errors import UserError
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.checksum import checksums
from jaxllm.train.config import check_kind, check_same_run, kind_of, to_dict
from jaxllm.train.folder import run_folder
from jaxllm.train.prepare import Run
from jaxllm.train.state import TrainState
from jaxllm.train.task import take


class Start(NamedTuple):
    """A state to train on from."""

    state: TrainState
    step: int  # updates that it holds
    how: str  # a sentence for the user


def begin(run: Run, kept: Checkpoints, batches) -> Start:
    """Return the state to start from, and move `batches` to match.

    Tried in this order: resume the newest whole checkpoint in the run's own folder; restore that of another
    run (`config.restore`), moments and place in the data included; fine-tune given parameters; from scratch.
    Damaged checkpoints of its own that are newer than the whole one are set aside.

    Raises:
      UserError: the checkpoints are of another run, of other data, or all damaged.
    """
    config = run.config
    if kept.latest() is not None:
        step, state, damaged = _read(run, kept, batches)
        kept.set_aside(damaged)
        how = f"resuming {config.out} after step {step}"
        if step >= config.steps:
            how = f"{config.out} has all of its {config.steps} steps: nothing is trained, only evaluated"
        return Start(state, step, how)
    if config.restore is not None:
        step, state = _restore(run, batches)
        return Start(state, step, f"restoring {config.restore} after step {step}, into {config.out}")
    state = run.init(jax.random.key(config.seed))
    if run.start is not None:
        return Start(state, 0, f"fine-tuning {run.start_name}")
    return Start(state, 0, "starting from scratch")


def state_after(run: Run, kept: Checkpoints, updates: int) -> TrainState:
    """Return the state that held so many updates, made again bit for bit from the newest checkpoint before.

    Args:
      run: the run.
      kept: its checkpoints, none with more updates.
      updates: how many.
    """
    batches = run.batches()
    state, start, _ = begin(run, kept, batches)
    for step in range(start, updates):
        state, _ = run.train_step_at(step)(state, run.put(take(batches, state.params, step + 1)))
    return state


def saved_config(run: Run) -> dict[str, Any]:
    """Return what a checkpoint remembers of its run: config, kind, and frozen parameters by checksum."""
    config = to_dict(run.config) | {"kind": kind_of(run.config)}
    if run.task.frozen is None:
        return config
    sums = run.task.frozen_sums
    return config | {"frozen": checksums(run.task.frozen) if sums is None else sums}


def _read(run: Run, kept: Checkpoints, batches, first: int | None = None):
    """Return (step, state, damaged steps) of the newest whole checkpoint; move `batches` to match."""

    def read(step):
        saved, position = kept.config(step), kept.position(step)
        try:
            check_kind(saved, run.config, kept.folder.parent)
            batches.restore(position)
            check_same_run(saved, run.config, str(kept.folder))
            _check_frozen(run, saved, kept.folder)
            run.check(saved, step, kept.folder)
        except Exception as error:  # no file's: raised below, where it is not taken for damage
            return error
        return kept.restore(step, run.shapes)

    step, found, damaged = kept.newest_whole(read, first)
    if isinstance(found, Exception):
        raise found
    return step, run.with_frozen(found[0]), damaged


def restored_folder(restore: str) -> tuple[Path, int | None]:
    """Return the folder of the run that `RunConfig.restore` names, and the step if it names one."""
    folder = run_folder(restore)
    if folder.name.isdecimal() and folder.parent.name == "checkpoints":
        return folder.parent.parent, int(folder.name)
    return folder, None


def _restore(run: Run, batches) -> tuple[int, TrainState]:
    folder, step = restored_folder(run.config.restore)
    kept = Checkpoints(folder / "checkpoints", together=True)
    if not kept.steps() or (step is not None and step not in kept.steps()):
        there = f"it has {', '.join(map(str, kept.steps()))}" if kept.steps() else "it has none"
        raise UserError(
            f"no checkpoint to restore in '{run.config.restore}' ({there}); give the --out folder of a "
            "training run, or its checkpoints/STEP"
        )
    found, state, _ = _read(run, kept, batches, first=step)
    if step is not None and found != step:
        raise UserError(f"the checkpoint {kept.folder / str(step)} is damaged; restore another one")
    return found, state


def _check_frozen(run: Run, saved: dict[str, Any], folder: Path) -> None:
    then, now = saved.get("frozen"), saved_config(run).get("frozen")
    if then == now:
        return
    names = sorted(set((then or {}).items()) ^ set((now or {}).items()))
    raise UserError(
        f"the checkpoint in {folder} was trained on top of other frozen parameters than this run has (they "
        f"differ in '{names[0][0]}'); give the same ones, or another --out"
    )
