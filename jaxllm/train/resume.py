"""Where a run goes on: its newest whole checkpoint, if it is the same run on the same data."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.subnetwork import get_schedule
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.config import TrainConfig, check_same_run, model_from_dict, to_dict
from jaxllm.train.folder import run_folder
from jaxllm.train.job import Job
from jaxllm.train.load import TOKENIZER_FILE
from jaxllm.train.state import TrainState


class Begun(NamedTuple):
    """What a run keeps from its beginning, where its data would give another one today."""

    tokenizer: data.Tokenizer | None = None
    vocab_groups: models.VocabGroups | None = None


def begun(config: TrainConfig) -> Begun:
    """Return what the run in `config.out` was begun with and its data would be asked for anew."""
    out = run_folder(config.out)
    kept = Checkpoints(out / "checkpoints", together=True)
    for step in reversed(kept.steps()):
        try:
            saved = kept.config(step)
            groups = model_from_dict(saved["model"]).vocab_groups
        except Exception:  # damaged: `start_or_resume` says so
            continue
        same = {name for name in ("tokenizer", "vocab_groups") if saved[name] == getattr(config, name)}
        # Trained on the text as it was then: text that was added must not change what an id means.
        trained = "tokenizer" in same and data.is_trained(config.tokenizer)
        keep_groups = "vocab_groups" in same and config.data_changed == "continue"
        return Begun(_tokenizer(out) if trained else None, groups if keep_groups else None)
    return Begun()


def start_or_resume(job: Job, kept: Checkpoints, batches: data.Batches) -> tuple[TrainState, int]:
    """Return the state to start from and the updates it holds; move `batches` to match.

    Damaged checkpoints that are newer than the whole one are set aside.

    Raises:
      UserError: the checkpoints are of another run, of other data, or all damaged.
    """
    if kept.latest() is None:
        return job.init(jax.random.key(job.config.seed)), 0
    now = place(job, batches)

    def read(step):
        saved, position = kept.config(step), kept.position(step)
        _check_data(job, position, now, kept.folder, step)
        check_same_run(saved, to_dict(job.config), str(kept.folder))
        _check_length(job, saved["steps"], kept.folder, step)
        return kept.restore(step, job.shapes)

    step, (state, position), damaged = kept.newest_whole(read)
    kept.set_aside(damaged)
    batches.restore(position | {name: now[name] for name in ("tokens", "data")})
    return state, step


def state_after(job: Job, kept: Checkpoints, updates: int) -> TrainState:
    """Return the state that held so many updates, made again bit for bit from the newest checkpoint before.

    Args:
      job: the run.
      kept: its checkpoints, none with more updates.
      updates: how many.
    """
    batches = job.batches()
    state, start = start_or_resume(job, kept, batches)
    for step in range(start, updates):
        state, _ = job.train_step_at(step)(state, job.put(next(batches)))
    return state


def place(job: Job, batches: data.Batches) -> dict[str, Any]:
    """Return where a run stands in its data, and what identifies the data."""
    return {**batches.state(), "valid": job.corpus.valid.fingerprint}


def _tokenizer(out: Path) -> data.Tokenizer | None:
    try:
        return data.load_tokenizer(str(out / TOKENIZER_FILE))
    except UserError:  # gone or damaged: the checkpoint's ids tell whether another one gives the same
        return None


def _check_data(job: Job, then: dict[str, Any], now: dict[str, Any], folder: Path, step: int) -> None:
    """Check that the ids are those that the run began with, or that it may go on with others."""
    config = job.config
    changed = [name for name in ("data", "valid") if then.get(name, now[name]) != now[name]]
    if then["tokens"] != now["tokens"] and not changed:  # from before there were fingerprints
        changed = ["data"]
    if not changed:
        return
    run = folder.parent
    tokenizer = _tokenizer(run)
    if tokenizer is None or tokenizer.fingerprint != job.corpus.tokenizer.fingerprint:
        raise UserError(
            f"the checkpoint in {folder} was written with another tokenizer than '{config.tokenizer}'; give "
            f"its own, {run / TOKENIZER_FILE}, or another --out"
        )
    parts = "training" if "data" in changed else "held-out"
    sizes = f"{then['tokens']:,} tokens to train on then, {now['tokens']:,} now"
    said = f"the {parts} text of '{config.data}' is not what step {step} in {folder} was trained on ({sizes})"
    if config.data_changed == "refuse":
        raise UserError(
            f"{said}; --data-changed continue goes on with the new text, from step {step} of its own order; "
            "or give the old text, or another --out"
        )
    if jax.process_index() == 0:
        print(f"{said}; going on with the new text", file=sys.stderr)


def _check_length(job: Job, steps: int, folder: Path, step: int) -> None:
    """Check that the steps already taken are those of a run of the length that is asked for now."""
    config = job.config
    if steps == config.steps:
        return
    if job.schedule is not None:
        numbers = np.arange(step)
        then, now = (jax.vmap(config.optim.make_schedule(n))(numbers) for n in (steps, config.steps))
        different = np.flatnonzero(~np.isclose(then, now, rtol=1e-6, atol=0))
        if different.size:
            at = different[-1]
            raise UserError(
                f"step {step} in {folder} is of a run of {steps} steps, and in one of {config.steps} the "
                f"schedule '{config.optim.schedule}' has another learning rate ({now[at]:.3g} and not "
                f"{then[at]:.3g} at step {at + 1}); keep steps={steps}, or choose another --out (a constant "
                "schedule, or wsd before its decay, can be extended)"
            )

    def ends(n):
        name, layers = config.subnetwork, config.model.num_layers
        return (get_schedule(name, layers, n) if name is not None else job.subnetworks).ends(n)

    passed = [[min(end, step) for end in ends(n)] for n in (steps, config.steps)]
    if passed[0] != passed[1]:
        raise UserError(
            f"step {step} in {folder} is of a run of {steps} steps, and in one of {config.steps} the stages "
            f"of its subnetworks end elsewhere (after steps {ends(config.steps)} and not {ends(steps)}); "
            f"keep steps={steps}, or choose another --out"
        )
