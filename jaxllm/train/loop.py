"""The training loop."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from jaxllm import compilation_cache, host_memory
from jaxllm.parallel import losses_told
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.config import TrainConfig, to_dict
from jaxllm.train.evaluate import Evaluation, evaluate
from jaxllm.train.folder import check_room, check_shared, only_trainer, run_folder
from jaxllm.train.interrupt import Interrupted, StopRequest
from jaxllm.train.job import Job, prepare
from jaxllm.train.load import TOKENIZER_FILE
from jaxllm.train.log import MetricsLog, NonFiniteLoss
from jaxllm.train.precision import warn_of_lost_updates
from jaxllm.train.profiler import Profiler
from jaxllm.train.resume import begun, place, start_or_resume, state_after
from jaxllm.train.step import is_sound
from jaxllm.train.timing import Stopwatch, seconds_since_process_start
from jaxllm.train.writers import Writers


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    job: Job
    params: Any
    evaluation: Evaluation  # of the last step
    steps: int  # done now; 0 if the run had already finished
    tokens_per_second: float  # over the steps alone; 0 if fewer than two were left to do
    seconds_to_first_step: float  # from the start of the process to the end of its first step


def train(config: TrainConfig, *, loss=None, optimizer=None, subnetworks=None, devices=None) -> Trained:
    """Train a model, or go on where the checkpoints in `config.out` end.

    Args:
      config: the run.
      loss: replaces next-token cross-entropy; (params, batch, key) -> (mean, sums with token_count).
      optimizer: any optax transformation, instead of the one that `config.optim` describes.
      subnetworks: a `subnetwork.Schedule`, instead of the one that `config.subnetwork` names.
      devices: which to train on; None is all.

    Raises:
      UserError: bad input, before anything is compiled; another run is at work in `config.out`.
      Interrupted: SIGTERM, SIGHUP or Ctrl-C came; a checkpoint was saved.
      NonFiniteLoss: names the step; the state from before it was saved.
      ProcessLost: of a run of several processes another one is gone.
    """
    compilation_cache.enable()
    host_memory.keep_freed_memory()
    out = run_folder(config.out)
    with losses_told():
        tokenizer, vocab_groups = begun(config)
    job = prepare(config, loss=loss, optimizer=optimizer, subnetworks=subnetworks, devices=devices,
                  tokenizer=tokenizer, vocab_groups=vocab_groups)  # fmt: skip
    config = job.config
    if jax.process_index() == 0:
        own = f"the optimizer '{config.optim.name}'" if optimizer is None else "the given optimizer"
        warn_of_lost_updates(config.precision, own, job.shapes.opt_state)
    check_room(out, job.shapes, copies=config.keep_last + config.keep_best + 1)
    with losses_told():
        check_shared(out)
    watch = Stopwatch(config.tokens_per_step)
    seconds_to_first_step = 0.0

    with (
        losses_told(),
        only_trainer(out),
        Checkpoints(out / "checkpoints", keep_last=config.keep_last, keep_best=config.keep_best,
                    together=True) as kept,
    ):  # fmt: skip
        batches = job.batches()
        state, start = start_or_resume(job, kept, batches)
        if jax.process_index() == 0:
            job.corpus.tokenizer.save(out / TOKENIZER_FILE)
        last = min(config.steps, start + config.stop_after) if config.stop_after else config.steps
        with (
            Writers(out, steps=config.steps, start=start, progress=config.progress,
                    tensorboard=config.tensorboard) as writers,
            Profiler(out / "profile", config.profile) as profiler,
            StopRequest() as stop,
        ):  # fmt: skip
            log = MetricsLog(writers, watch, every=config.log_every, last=last,
                             learning_rates=job.learning_rates())  # fmt: skip

            def save(step, position, heldout_loss=math.inf):
                in_place = config.offload != "none" and config.engine == "jit"
                if in_place and not is_sound(state.params, state.opt_state):
                    raise NonFiniteLoss(step, position, log.last, saved=False)
                kept.save(state, step=step, data=position, config=to_dict(config), heldout_loss=heldout_loss)

            def evaluate_at(step):
                def before_batch():
                    if stop.signum is not None:  # there may be little time left
                        save(step, place(job, batches))

                scores = evaluate(
                    job, state.params, max_batches=config.eval_batches, before_batch=before_batch
                )
                writers.evaluated(step, scores)
                return scores.loss

            def evaluation_is_due(step):
                return step % config.eval_every == 0 or step == last

            if start and evaluation_is_due(start) and writers.lacks_evaluation(start):
                evaluate_at(start)  # the run was ended during it
            try:
                for step in range(start + 1, last + 1):
                    position = place(job, batches)
                    with jax.profiler.StepTraceAnnotation("train", step_num=step):
                        state, metrics = job.train_step_at(step - 1)(state, job.put(next(batches)))
                    if step == start + 1:
                        metrics["loss"].block_until_ready()
                        seconds_to_first_step = seconds_since_process_start()
                    log.push(step, position, metrics)
                    profiler.step(metrics["loss"])

                    stopping = stop.received(step)
                    heldout_loss = math.inf
                    if evaluation_is_due(step):
                        log.flush()
                        heldout_loss = evaluate_at(step)
                        stopping |= stop.signum is not None
                    if stopping or step % config.save_every == 0 or step == last:
                        log.flush()
                        save(step, place(job, batches), heldout_loss)
                    if stopping:
                        kept.wait()
                        raise Interrupted(stop.signum, f"stopped after step {step}; the state is saved "
                                          f"in {kept.folder}: run the same command to go on")  # fmt: skip
            except NonFiniteLoss as failure:
                if failure.overwritten:
                    state = None  # its memory is needed
                    kept.wait()
                    state = state_after(job, kept, failure.updates)
                if failure.saved:
                    save(failure.updates, failure.position)
                kept.wait()
                raise
        kept.wait()
        evaluation = evaluate(job, state.params, max_batches=config.final_eval_batches)
    return Trained(
        job=job,
        params=state.params,
        evaluation=evaluation,
        steps=max(0, last - start),
        tokens_per_second=watch.overall_tokens_per_second,
        seconds_to_first_step=seconds_to_first_step,
    )
