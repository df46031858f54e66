"""Training a language model on text."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from jaxllm.errors import UserError
from jaxllm.parallel import losses_told
from jaxllm.subnetwork import Schedule
from jaxllm.text.config import TrainConfig
from jaxllm.text.precision import warn_of_lost_updates
from jaxllm.text.prepare import prepare
from jaxllm.text.resume import begun
from jaxllm.text.samples import print_samples
from jaxllm.train.loop import Trained, train_run
from jaxllm.train.task import Every, LossFunction, OnMetrics, View


def train(
    config: TrainConfig,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    subnetworks: Schedule | None = None,
    views: Sequence[View] = (),
    start: Any = None,
    devices: Sequence[jax.Device] | None = None,
    on_metrics: OnMetrics | None = None,
    callbacks: Sequence[Every] = (),
) -> Trained:
    """Train a language model, or go on where the checkpoints in `config.out` end.

    Args:
      config: the run.
      loss: replaces next-token cross-entropy; (params, batch, key) -> (mean, sums with token_count).
      optimizer: any optax transformation, instead of the one that `config.optim` describes.
      subnetworks: a `subnetwork.Schedule`, instead of the one that `config.subnetwork` names.
      views: functions of the parameters, applied before the loss; see `jaxllm.train.View`.
      start: parameters to begin with, of `config.model`; instead of the model that `config.start` names.
      devices: which to train on; None is all.
      on_metrics: (step, numbers by name) -> None: is told what metrics.jsonl gets, as it gets it.
      callbacks: functions of the parameters, each `jaxllm.train.Every` so many steps.

    Raises:
      UserError: bad input, before anything is compiled; another run is at work in `config.out`.
      Interrupted, NonFiniteLoss, ProcessLost: see `jaxllm.train.train_run`.

    Examples:
      Five lines for wandb, or for trackio, which is called the same::

        import wandb
        from jaxllm.text import TrainConfig, train

        wandb.init(project="mine")
        train(TrainConfig(data="my.txt"), on_metrics=lambda step, numbers: wandb.log(numbers, step=step))
    """
    if config.sample_every and jax.process_count() > 1:
        raise UserError("sample_every is of runs of one process; leave it out")
    with losses_told():
        kept = begun(config)
    run = prepare(config, loss=loss, optimizer=optimizer, subnetworks=subnetworks, views=views, start=start,
                  devices=devices, begun=kept)  # fmt: skip
    if jax.process_index() == 0 and config.lora.rank is None:  # an adapter is float32 under any precision
        own = f"the optimizer '{config.optim.name}'" if optimizer is None else "the given optimizer"
        warn_of_lost_updates(config.precision, own, run.shapes.opt_state)
    if config.sample_every:
        callbacks = (*callbacks, Every(config.sample_every, print_samples(run)))
    return train_run(run, on_metrics=on_metrics, callbacks=callbacks)
