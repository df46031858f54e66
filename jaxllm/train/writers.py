"""Where the numbers of a run go: a progress bar, a JSONL file, TensorBoard."""

import contextlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from jaxllm.atomic import write_file
from jaxllm.errors import UserError
from jaxllm.train.task import OnMetrics

_HELDOUT = "heldout_"  # begins the name of what an evaluation found
_LAST = "final_"  # of what `Task.evaluate_last` found


class Writers:
    """The outputs of a run; with several processes only the first one writes.

    metrics.jsonl holds one object a line: {"step": ..., name: number, ...}. When a run resumes, the
    lines that its checkpoint does not know are dropped, so no step stands twice.

    Args:
      folder: the run's.
      steps: of the whole run.
      start: those that were taken before.
      progress: show a bar, from the first step's end on: a program is compiled before.
      tensorboard: also write its events.
      on_metrics: is told all that is written.
    """

    def __init__(self, folder, *, steps: int, start: int, progress: bool, tensorboard: bool,
                 on_metrics: OnMetrics | None = None):  # fmt: skip
        self._active = jax.process_index() == 0
        self._tensorboard = self._bar = None
        self._steps, self._done, self._progress, self._on_metrics = steps, start, progress, on_metrics
        if not self._active:
            return
        folder = Path(folder)
        self._path = folder / "metrics.jsonl"
        with _clear_errors(self._path):
            _drop_lines_after(self._path, start)
            self._file = self._path.open("a", encoding="utf-8")
        if tensorboard:
            self._tensorboard = _tensorboard_writer(folder / "tensorboard")

    def advance(self, loss: float, speed: float, unit: str) -> None:
        """Move the progress bar by one step."""
        self._done += 1
        if not self._active:
            return
        if self._bar is None:
            self._bar = tqdm(total=self._steps, initial=self._done, unit="step", disable=not self._progress,
                             dynamic_ncols=True, mininterval=_seconds_between_redraws())  # fmt: skip
        else:
            self._bar.update()
        shown = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        fast = f", {shown} {unit}/s" if speed else ""  # not known of one step
        self._bar.set_postfix_str(f"loss {loss:.3f}{fast}", refresh=False)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the numbers of a step."""
        if not self._active:
            return
        with _clear_errors(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._on_metrics is not None:
            tell, self._on_metrics = self._on_metrics, None  # one that raises is not called again
            tell(step, dict(values))
            self._on_metrics = tell

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """Record what an evaluation found and show it above the progress bar."""
        self.write(step, {f"{_HELDOUT}{name}": value for name, value in scores.items()})
        if self._active:
            tqdm.write(f"step {step}: held-out {_shown(scores)}")

    def evaluated_last(self, step: int, scores: dict[str, float]) -> None:
        """Record what the evaluation after the last step found."""
        self.write(step, {f"{_LAST}{name}": value for name, value in scores.items()})

    def end_bar(self) -> None:
        """Leave the progress bar as it stands: there are no more steps."""
        if self._bar is not None:
            self._bar.close()

    def lacks_evaluation(self, step: int, last: bool = False) -> bool:
        """Return whether no evaluation of a step was recorded; the same answer in all processes.

        Args:
          step: after which it was due.
          last: whether the one after the last step is meant.
        """
        prefix = _LAST if last else _HELDOUT
        lacks = self._active and not any(
            row["step"] == step and any(name.startswith(prefix) for name in row)
            for row in read_metrics(self._path.parent)
        )
        if jax.process_count() > 1:
            lacks = bool(multihost_utils.broadcast_one_to_all(np.int32(lacks)))
        return lacks

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._active:
            self.end_bar()
            with contextlib.suppress(OSError):  # what could not be flushed has been reported
                self._file.close()
            with contextlib.suppress(AttributeError):
                self._tensorboard.close()


def _seconds_between_redraws() -> float:
    """Return a moment where somebody watches the bar; more where each redrawing is a line of a log."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return 0.1 if watched else 30.0


def _shown(scores: dict[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:,}' if isinstance(value, int) else f'{value:.5g}'}"
        for name, value in scores.items()
    )


def read_metrics(folder) -> list[dict[str, float]]:
    """Return the objects of a run's metrics.jsonl, in the order they were written."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a killed run may cut a line


def heldout_curve(folder) -> list[list[float]]:
    """Return [step, held-out loss] of each evaluation of a run."""
    return [[row["step"], row["heldout_loss"]] for row in read_metrics(folder) if "heldout_loss" in row]


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    write_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


@contextlib.contextmanager
def _clear_errors(path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"could not write {path} ({error.strerror}); the checkpoints are whole: make room or "
            "choose another --out, then run the same command to go on"
        ) from error


def _tensorboard_writer(folder):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs tensorboardX; pip install 'jaxllm[tensorboard]'") from error
    return SummaryWriter(str(folder))
