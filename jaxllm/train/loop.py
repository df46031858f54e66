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
from jaxllm.errors import UserError
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
from jaxllm.train.start import begin, saved_config, state_after
from jaxllm.train.step import is_sound
from jaxllm.train.task import Every, OnMetrics, Stage, Task, View, check_evaluation
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
            f"Trained({self.steps:,} steps{scores}; {self.speed:,.0f} {unit}/s; {holding(self.params)}; "
            f"in '{self.run.config.out}')"
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
    work, unit = config.work_per_step
    watch, seconds_to_first_step, evaluation, shows = Stopwatch(work), 0.0, {}, config.progress

    with (
        losses_told(),
        only_trainer(out),
        Checkpoints(out / "checkpoints", keep_last=config.keep_last, keep_best=config.keep_best,
                    keep_steps=config.keep_steps, together=True) as kept,
    ):  # fmt: skip
        batches = run.batches()
        state, start, how = begin(run, kept, batches)
        if jax.process_index() == 0:
            for line in (*(describe(run) if shows else ()), how):
                tqdm.write(line, file=sys.stderr)  # above whatever bar there is
            write_config(run, out)
            if run.task.save is not None:
                run.task.save(out)
        last = min(config.steps, start + config.stop_after) if config.stop_after else config.steps
        with (
            curves_drawn(out, shows and jax.process_index() == 0),
            Writers(out, steps=config.steps, start=start, progress=config.progress,
                    tensorboard=config.tensorboard, on_metrics=on_metrics) as writers,
            Profiler(out / "profile", config.profile) as profiler,
            StopRequest() as stop,
        ):  # fmt: skip
            log = MetricsLog(writers, watch, every=config.log_every, last=last, unit=unit,
                             learning_rates=run.learning_rates())  # fmt: skip
            remembered = saved_config(run)

            def save(step, position, heldout_loss=math.inf):
                if "sound" not in log.last and not is_sound(state.params, state.opt_state):
                    raise NonFiniteLoss(step, position, log.last, saved=False)
                kept.save(state, step=step, data=position, config=remembered, heldout_loss=heldout_loss)

            @contextlib.contextmanager
            def saving(step, position=None):
                try:
                    yield
                except NonFiniteLoss:
                    raise
                except Exception:  # of the task's own functions, which must not cost the steps taken
                    # Saving waits for all processes, and one of several may have failed alone.
                    if step > start and jax.process_count() == 1:
                        log.flush()
                        save(step, batches.state() if position is None else position)
                    raise

            def batch_at(step, position):
                with saving(step - 1, position):
                    return run.put(_next(batches, step))

            def evaluate_at(step):
                def before_batch():
                    if stop.signum is not None:  # there may be little time left
                        save(step, batches.state())

                mean_loss = partial(run.mean_loss, frozen=state.frozen, before_batch=before_batch)
                with saving(step):
                    evaluation = check_evaluation(run.task.evaluate(state.params, mean_loss))
                writers.evaluated(step, evaluation)
                return evaluation

            def evaluation_is_due(step):
                return run.task.evaluate is not None and (step % config.eval_every == 0 or step == last)

            def save_is_due(step):
                return step % config.save_every == 0 or step == last or step in config.keep_steps

            def call_back(step):
                for callback in callbacks:
                    if step % callback.steps == 0 or step == last:
                        log.flush()
                        with saving(step):
                            callback.call(step, state.params)

            best_loss = kept.best_loss()
            if start and evaluation_is_due(start) and writers.lacks_evaluation(start):
                evaluation = evaluate_at(start)  # the run was ended during it
                kept.rank(start, evaluation.get("loss", math.inf))
                best_loss = min(best_loss, evaluation.get("loss", math.inf))
            try:
                compiling = Compiling(shows and start < last and jax.process_index() == 0)
                for step in range(start + 1, last + 1):
                    position = batches.state()
                    with jax.profiler.StepTraceAnnotation("train", step_num=step):
                        state, metrics = run.train_step_at(step - 1)(state, batch_at(step, position))
                    if step == start + 1:
                        metrics["loss"].block_until_ready()
                        seconds_to_first_step = seconds_since_process_start()
                        compiling.done(step)
                    with saving(step):
                        log.push(step, position, metrics)
                    profiler.step(metrics["loss"])

                    stopping = stop.received(step)
                    heldout_loss = math.inf
                    if evaluation_is_due(step):
                        log.flush()
                        evaluation = evaluate_at(step)
                        heldout_loss = evaluation.get("loss", math.inf)
                        stopping |= stop.signum is not None
                    if not stopping:
                        call_back(step)
                    is_best, best_loss = heldout_loss < best_loss, min(best_loss, heldout_loss)
                    if stopping or save_is_due(step) or (is_best and config.keep_best):
                        log.flush()
                        save(step, batches.state(), heldout_loss)
                    if stopping:
                        kept.wait()
                        raise Interrupted(stop.signum, f"stopped after step {step}; the state is saved "
                                          f"in {kept.folder}: run the same command to go on")  # fmt: skip
            except NonFiniteLoss as failure:
                if failure.overwritten:
                    state = None  # its memory is needed
                    kept.wait()
                    state = state_after(run, kept, failure.updates)
                if failure.saved:
                    save(failure.updates, failure.position)
                kept.wait()
                raise
            kept.wait()
            writers.end_bar()
            evaluate = run.task.evaluate_last or run.task.evaluate
            if evaluate is not None and (run.task.evaluate_last or not evaluation):

                def leave_if_asked():
                    if stop.signum is not None:
                        raise Interrupted(stop.signum, "stopped in the evaluation after the last step; the "
                                          f"state is saved in {kept.folder}")  # fmt: skip

                mean_loss = partial(run.mean_loss, frozen=state.frozen, before_batch=leave_if_asked)
                evaluation = check_evaluation(evaluate(state.params, mean_loss))
                if run.task.evaluate_last and last > start:
                    writers.evaluated_last(last, evaluation)
    if last < config.steps and jax.process_index() == 0:
        text = f"stopped after step {last} of {config.steps}, as stop_after={config.stop_after} says"
        tqdm.write(f"{text}; the same command goes on", file=sys.stderr)
    return Trained(
        run=run,
        params=state.params,
        steps=max(0, last - start),
        speed=watch.overall_speed,
        seconds_to_first_step=seconds_to_first_step,
        evaluation=evaluation,
    )


def _next(batches, step: int):
    try:
        return next(batches)
    except StopIteration:
        raise UserError(
            f"the task's batches ended before step {step}; let them go on without end, or lower steps"
        ) from None
