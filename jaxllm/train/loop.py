"""The training loop."""

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax
from tqdm import tqdm

from jaxllm import compilation_cache, host_memory
from jaxllm.parallel import losses_told
from jaxllm.short_repr import holding
from jaxllm.train.announce import Compiling, describe, write_config
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.config import RunConfig
from jaxllm.train.engine import Engine, jit_engine
from jaxllm.train.folder import check_room, check_shared, only_trainer, run_folder
from jaxllm.train.interrupt import Interrupted, StopRequest
from jaxllm.train.log import MetricsLog, NonFiniteLoss
from jaxllm.train.plot import curves_drawn
from jaxllm.train.prepare import Run, prepare
from jaxllm.train.profiler import Profiler
from jaxllm.train.start import Start, begin, saved_config, state_after
from jaxllm.train.step import is_sound
from jaxllm.train.task import Every, OnMetrics, Stage, Task, View, check_evaluation, take
from jaxllm.train.timing import Stopwatch, seconds_since_process_start
from jaxllm.train.writers import Writers


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: Run
    params: Any
    steps: int  # done now; 0 if the run had already finished
    speed: float  # of `RunConfig.work_per_step`, a second; 0 if fewer than two steps were left to do
    seconds_to_first_step: float  # from the start of the process to the end of its first step
    evaluation: dict[str, float] = field(default_factory=dict)  # of the last step

    def __repr__(self) -> str:
        unit = self.run.config.work_per_step[1]
        scores = "".join(f", {name} {value:.4g}" for name, value in self.evaluation.items())
        return (
            f"{type(self).__name__}({self.steps:,} steps{scores}; {self.speed:,.0f} {unit}/s; "
            f"{holding(self.params)}; in '{self.run.config.out}')"
        )


def train(
    task: Task,
    config: RunConfig = RunConfig(),
    *,
    optimizer: optax.GradientTransformation,
    views: Sequence[View] | Sequence[Stage] = (),
    engine: Engine = jit_engine(),
    start: Any = None,
    devices: Sequence[jax.Device] | None = None,
    schedule: optax.Schedule | None = None,
    on_metrics: OnMetrics | None = None,
    callbacks: Sequence[Every] = (),
) -> Trained:
    """Train a task, or go on where the checkpoints in `config.out` end.

    Args:
      task: what is trained.
      config: for how long, and where it writes.
      optimizer: any optax transformation.
      views: functions of the parameters, applied before the loss; see `prepare`.
      engine: makes the step.
      start: parameters to begin with; None: the task draws them.
      devices: which to train on; None is all.
      schedule: of the learning rate, for the log.
      on_metrics: see `train_run`.
      callbacks: see `train_run`.

    Raises:
      UserError, Interrupted, NonFiniteLoss, ProcessLost: see `train_run`.

    Examples:
      Numbers go wherever a function takes them, and parameters are looked at while they are trained::

        wandb.init(project="mine")
        train(task, config, optimizer=optax.adam(1e-3),
              on_metrics=lambda step, numbers: wandb.log(numbers, step),
              callbacks=[Every(500, lambda step, params: print(step, params["w"]))])
    """
    options = dict(optimizer=optimizer, views=views, engine=engine, start=start, schedule=schedule)
    run = prepare(task, config, devices=devices, **options)
    return train_run(run, on_metrics=on_metrics, callbacks=callbacks)


def train_run(
    run: Run, *, on_metrics: OnMetrics | None = None, callbacks: Sequence[Every] = ()
) -> Trained:
    """Take the steps of a run that is prepared.

    Whatever the task's `evaluate` and `batches`, `on_metrics` and `callbacks` raise passes through. A run of
    one process saves its state before, and an evaluation that was due is made up for when it goes on.

    Args:
      run: from `prepare`.
      on_metrics: (step, numbers by name) -> None: is told what metrics.jsonl gets, as it gets it.
      callbacks: functions of the parameters, each `Every` so many steps.

    Raises:
      UserError: another run is at work in its folder, or the checkpoints there are not its own.
      Interrupted: SIGTERM, SIGHUP or Ctrl-C came; a checkpoint was saved.
      NonFiniteLoss: names the step; the state from before it was saved.
      ProcessLost: of a run of several processes another one is gone.
    """
    compilation_cache.enable()
    host_memory.keep_freed_memory()
    config, out = run.config, run_folder(run.config.out)
    check_room(out, run.shapes, copies=config.keep_last + config.keep_best + len(config.keep_steps) + 1)
    with losses_told():
        check_shared(out)
    tells = jax.process_index() == 0
    shows = tells and config.progress
    with (
        losses_told(),
        only_trainer(out),
        Checkpoints(out / "checkpoints", keep_last=config.keep_last, keep_best=config.keep_best,
                    keep_steps=config.keep_steps, together=True) as kept,
    ):  # fmt: skip
        batches = run.batches()
        begun = begin(run, kept, batches)
        if tells:
            for line in (*(describe(run) if shows else ()), begun.how):
                tqdm.write(line, file=sys.stderr)  # above whatever bar there is
            write_config(run, out)
            if run.task.save is not None:
                run.task.save(out)
        with (
            curves_drawn(out, shows),
            Writers(out, steps=config.steps, start=begun.step, progress=config.progress,
                    tensorboard=config.tensorboard, on_metrics=on_metrics) as writers,
            Profiler(out / "profile", config.profile) as profiler,
            StopRequest() as stop,
        ):  # fmt: skip
            loop = _Loop(run, begun, batches, kept, writers, profiler, stop, callbacks)
            loop.take_steps()
            loop.evaluate_last()
    if loop.last < config.steps and tells:
        text = f"stopped after step {loop.last} of {config.steps}, as stop_after={config.stop_after} says"
        tqdm.write(f"{text}; the same command goes on", file=sys.stderr)
    return Trained(
        run=run,
        params=loop.state.params,
        steps=max(0, loop.last - begun.step),
        speed=loop.watch.overall_speed,
        seconds_to_first_step=loop.seconds_to_first_step,
        evaluation=loop.evaluation,
    )


class _Loop:
    """A run between its first step and its last: its state, and what is due after each step."""

    def __init__(
        self,
        run: Run,
        begun: Start,
        batches: Any,
        kept: Checkpoints,
        writers: Writers,
        profiler: Profiler,
        stop: StopRequest,
        callbacks: Sequence[Every],
    ):
        config = run.config
        self.run, self.batches, self.kept, self.writers = run, batches, kept, writers
        self.profiler, self.stop, self.callbacks = profiler, stop, callbacks
        self.state, self.start = begun.state, begun.step
        self.last = config.steps
        if config.stop_after:
            self.last = min(config.steps, self.start + config.stop_after)
        self.evaluation: dict[str, float] = {}
        self.best_loss = kept.best_loss()
        self.seconds_to_first_step = 0.0
        work, unit = config.work_per_step
        self.watch = Stopwatch(work)
        self.log = MetricsLog(writers, self.watch, every=config.log_every, last=self.last, unit=unit,
                              learning_rates=run.learning_rates())  # fmt: skip
        self._remembered = saved_config(run)

    def take_steps(self) -> None:
        """Take all steps, and wait until their last checkpoint is on disk."""
        self._make_up_for_evaluation()
        shows = self.run.config.progress and self.start < self.last and jax.process_index() == 0
        compiling = Compiling(shows)
        try:
            for step in range(self.start + 1, self.last + 1):
                loss = self._take(step)
                if step == self.start + 1:
                    loss.block_until_ready()
                    self.seconds_to_first_step = seconds_since_process_start()
                    compiling.done(step)
                self._after(step)
        except NonFiniteLoss as failure:
            self._save_before(failure)
            raise
        self.kept.wait()
        self.writers.end_bar()

    def evaluate_last(self) -> None:
        """Take the evaluation after the last step, where the task has one or none was due before."""
        task = self.run.task
        evaluate = task.evaluate_last or task.evaluate
        if evaluate is None or (self.evaluation and not task.evaluate_last):
            return

        def leave_if_asked():
            if self.stop.signum is not None:
                raise Interrupted(self.stop.signum, "stopped in the evaluation after the last step; the "
                                  f"state is saved in {self.kept.folder}")  # fmt: skip

        self.evaluation = self._evaluated(evaluate, leave_if_asked)
        step = max(self.start, self.last)
        if task.evaluate_last and self.writers.lacks_evaluation(step, last=True):
            self.writers.evaluated_last(step, self.evaluation)

    def _take(self, step: int) -> jax.Array:
        position = self.batches.state()
        with self._saving(step - 1, position):
            batch = self.run.put(take(self.batches, self.state.params, step))
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self.state, metrics = self.run.train_step_at(step - 1)(self.state, batch)
        with self._saving(step):
            self.log.push(step, position, metrics)
        self.profiler.step(metrics["loss"])
        return metrics["loss"]

    def _after(self, step: int) -> None:
        """Evaluate, call back, save and stop, where that is due; save first where the run is stopped."""
        stopping, heldout_loss = self.stop.received(step), math.inf
        if self._evaluation_is_due(step):
            self.log.flush()
            heldout_loss = self._evaluate(step)
            stopping |= self.stop.signum is not None
        if not stopping:
            self._call_back(step)
        is_best = heldout_loss < self.best_loss
        self.best_loss = min(self.best_loss, heldout_loss)
        if stopping or self._save_is_due(step) or (is_best and self.run.config.keep_best):
            self.log.flush()
            self._save(step, self.batches.state(), heldout_loss)
        if stopping:
            self.kept.wait()
            self._call_back(step)
            raise Interrupted(self.stop.signum, f"stopped after step {step}; the state is saved "
                              f"in {self.kept.folder}: run the same command to go on")  # fmt: skip

    def _evaluation_is_due(self, step: int) -> bool:
        return self.run.task.evaluate is not None and (
            step % self.run.config.eval_every == 0 or step == self.last
        )

    def _save_is_due(self, step: int) -> bool:
        config = self.run.config
        return step % config.save_every == 0 or step == self.last or step in config.keep_steps

    def _evaluate(self, step: int) -> float:
        """Evaluate after a step; return the loss that ranks its checkpoint."""

        def save_if_asked():
            if self.stop.signum is not None:  # there may be little time left
                self._save(step, self.batches.state())

        with self._saving(step):
            self.evaluation = self._evaluated(self.run.task.evaluate, save_if_asked)
        self.writers.evaluated(step, self.evaluation)
        return self.evaluation.get("loss", math.inf)

    def _evaluated(self, evaluate, before_batch) -> dict[str, float]:
        mean_loss = partial(self.run.mean_loss, frozen=self.state.frozen, before_batch=before_batch)
        return check_evaluation(evaluate(self.state.params, mean_loss))

    def _make_up_for_evaluation(self) -> None:
        """Evaluate what was due when the run was ended."""
        start = self.start
        if start and self._evaluation_is_due(start) and self.writers.lacks_evaluation(start):
            heldout_loss = self._evaluate(start)
            self.kept.rank(start, heldout_loss)
            self.best_loss = min(self.best_loss, heldout_loss)

    def _call_back(self, step: int) -> None:
        for callback in self.callbacks:
            if step % callback.steps == 0 or step == self.last:
                self.log.flush()
                with self._saving(step):
                    callback.call(step, self.state.params)

    def _save(self, step: int, position: dict[str, Any], heldout_loss: float = math.inf) -> None:
        if "sound" not in self.log.last and not is_sound(self.state.params, self.state.opt_state):
            raise NonFiniteLoss(step, position, self.log.last, saved=False)
        self.kept.save(
            self.state, step=step, data=position, config=self._remembered, heldout_loss=heldout_loss
        )

    @contextlib.contextmanager
    def _saving(self, step: int, position: dict[str, Any] | None = None):
        """Save the state of a step before an error of the task's own functions passes through."""
        try:
            yield
        except NonFiniteLoss:
            raise
        except Exception:
            # Saving waits for all processes, and one of several may have failed alone.
            if step > self.start and jax.process_count() == 1:
                self.log.flush()
                self._save(step, self.batches.state() if position is None else position)
            raise

    def _save_before(self, failure: NonFiniteLoss) -> None:
        """Save the state from before a step that failed."""
        if failure.overwritten:
            self.state = None  # its memory is needed
            self.kept.wait()
            self.state = state_after(self.run, self.kept, failure.updates)
        if failure.saved:
            self._save(failure.updates, failure.position)
        self.kept.wait()
