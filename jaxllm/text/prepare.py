"""A run on text, from the command line's config: corpus, vocabulary, model, loss, views, engine."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import data, models, parallel, vocabulary
from jaxllm.errors import UserError
from jaxllm.optim import make_optimizer, mask_unsampled
from jaxllm.subnetwork import (
    Rates,
    Schedule,
    check_schedule,
    extract,
    extract_in_turn,
    get_schedule,
    subnetwork,
)
from jaxllm.text.about import about, about_data
from jaxllm.text.adapted import adaptation, adapted, check_given, lasting
from jaxllm.text.config import TrainConfig
from jaxllm.text.load import load_model
from jaxllm.text.own_fields import with_own
from jaxllm.text.precision import get_precision, with_precision
from jaxllm.text.resume import Begun, check_same_steps
from jaxllm.text.task import text_task
from jaxllm.train.engine import jit_engine
from jaxllm.train.prepare import Run
from jaxllm.train.prepare import prepare as prepare_task
from jaxllm.train.task import LossFunction, Stage, View


@dataclass(frozen=True, repr=False)
class TextRun(Run):
    """A run on text."""

    corpus: data.Corpus | None = None  # None: the run is only compiled

    @property
    def model(self) -> models.LanguageModel:
        """The model being trained, with its vocabulary and types filled in."""
        return self.config.model


def prepare(
    config: TrainConfig,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    subnetworks: Schedule | None = None,
    views: Sequence[View] = (),
    start: Any = None,
    devices: Sequence[jax.Device] | None = None,
    begun: Begun = Begun(),
) -> TextRun:
    """Read the data, resolve the config and build the steps.

    Args:
      config: the run.
      loss: see `train`.
      optimizer: see `train`.
      subnetworks: see `train`.
      views: see `train`.
      start: see `train`.
      devices: which to use; None is all.
      begun: what a run that goes on keeps from its beginning.

    Raises:
      UserError: the data, the model and the devices do not fit together.
    """
    mesh = _mesh(config, devices)  # before the data: a mistake here shows at once
    check_given(config, start)
    config, start, tokenizer = _started(config, start, begun)
    if config.start is not None:
        adaptation(config.model, config.lora, config.train_only)  # a wrong name, before the data is read
    schedule = _schedule(config, subnetworks, mesh)
    corpus = data.prepare(
        config.data, tokenizer or config.tokenizer, seq_len=config.seq_len, text_column=config.text_column,
        long_examples=config.long_examples, valid_fraction=config.valid_fraction,
        valid_source=config.valid_data, pairs=config.model.start_id is not None,
    )  # fmt: skip
    _tell_examples(config, corpus)
    config = _with_vocabulary(config, corpus, begun.vocab_groups)
    return _build(config, corpus, mesh, loss, optimizer, schedule, views, start, devices)


def prepare_shapes(
    config: TrainConfig,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    subnetworks: Schedule | None = None,
    views: Sequence[View] = (),
    devices: Sequence[jax.Device] | None = None,
) -> TextRun:
    """Build the steps of a run without its data, to compile them.

    Args:
      config: the run; its model's vocabulary must be known.
      loss: see `train`.
      optimizer: see `train`.
      subnetworks: see `train`.
      views: see `train`.
      devices: which to use; they may be compile-only.

    Raises:
      UserError: the model and the devices do not fit together.
    """
    mesh = _mesh(config, devices)
    schedule = _schedule(config, subnetworks, mesh)
    return _build(config, None, mesh, loss, optimizer, schedule, views, None, devices)


def _tell_examples(config: TrainConfig, corpus: data.Corpus) -> None:
    """Say on stderr what rows were found to hold, where the run does not say it when it starts.

    Raises:
      UserError: documents are to be padded as if they were examples.
    """
    if corpus.train.predicted is None and not config.packed:
        raise UserError(f"packed=False is of examples, and '{config.data}' holds documents; leave it out")
    if corpus.train.predicted is not None and not config.progress and jax.process_index() == 0:
        print(f"data {about_data(config, corpus)}", file=sys.stderr)


def _mesh(config, devices):
    mesh = parallel.make_mesh(config.mesh, devices)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (ways * config.accumulate):
        raise UserError(
            f"batch_size {config.batch_size} cannot be split over {ways} devices x "
            f"accumulate={config.accumulate}; choose a multiple of {ways * config.accumulate}"
        )
    return mesh


def _schedule(config, subnetworks, mesh) -> Schedule | None:
    """Return which part of the model is trained when, checked; None: always all of it."""
    if subnetworks is None and config.subnetwork is not None:
        subnetworks = get_schedule(config.subnetwork, config.model.num_layers, config.steps)
    if subnetworks is not None:
        check_schedule(config.model, subnetworks, shards=mesh.shape["tensor"])
    return subnetworks


def _build(config, corpus, mesh, loss, optimizer, subnetworks, views, start, devices) -> TextRun:
    config = with_precision(config)
    if config.model.remat == "offload":
        parallel.in_host_memory(NamedSharding(mesh, PartitionSpec()))  # raises if there is none
    task = text_task(config, corpus, loss)
    plain = loss is None and optimizer is None and subnetworks is None and not views
    apart = loss is None and _faster_unstacked(config, mesh)
    if config.adapts:
        task, start, view = adapted(config, task, start, apart)
        views = (view, *views)
    own_rates = optimizer is None
    if own_rates:
        optimizer = make_optimizer(config.optim, config.steps, task.axes)
    if config.unsampled == "freeze":
        optimizer = mask_unsampled(optimizer, task.axes)
    if apart and config.lora.rank is None:
        views = (*views, unstacked)
    run = prepare_task(
        task,
        config,
        optimizer=get_precision(config.precision).wrap(optimizer),
        views=_stages(config, subnetworks, tuple(views), task.axes, mesh),
        engine=_engine(config, plain),
        start=start,
        start_name=f"'{config.start}'" if config.start is not None else "given parameters",
        devices=devices,
        schedule=config.optim.make_schedule(config.steps) if own_rates else None,
        check=check_same_steps(config, subnetworks if config.subnetwork is None else None, own_rates),
        about={} if corpus is None else about(config, corpus, None if own_rates else "given in Python"),
    )
    if loss is not None:
        run.check_loss()
    return TextRun(**vars(run), corpus=corpus)


def unstacked(params, frozen, key):
    """View the stack of layers taken apart: faster to run, slower to compile (`models.layers_apart`)."""
    del frozen, key
    return models.layers_apart(params)


def _stages(config, subnetworks, views, axes, mesh) -> tuple[Stage, ...]:
    if subnetworks is None:
        return (Stage(config.steps, views),)
    cut = extract_in_turn if config.offload == "state" else extract

    @functools.cache
    def view(rates: Rates):
        return subnetwork(config.model, rates, subnetworks, axes, shards=mesh.shape["tensor"], cut=cut)

    ends = subnetworks.ends(config.steps)
    return tuple(
        Stage(end, views if stage.rates == Rates() else (view(stage.rates), *views))
        for end, stage in zip(ends, subnetworks.stages, strict=True)
    )


def _engine(config: TrainConfig, plain: bool):
    if config.engine == "tiles":
        from jaxllm.text.tiled import tiled_engine  # an import that only this engine needs

        return tiled_engine(config, plain)
    # With layers in the host's memory each of them takes the parts of a batch one by one, in the loss.
    return jit_engine(1 if config.offload == "state" else config.accumulate)


def _started(config: TrainConfig, start: Any, begun: Begun):
    """Return (the run with the model it starts from, that model's parameters, its tokenizer)."""
    if config.start is None:
        return config, start, begun.tokenizer
    if start is not None:
        raise UserError(f"start= and config.start='{config.start}' both give parameters; give one of them")
    model, params, tokenizer = begun.model, None, begun.tokenizer
    if model is None or config.adapts:  # nothing to go on from, or not all of it is in checkpoints
        dtype = get_precision(config.precision).param_dtype
        loaded, params, its_tokenizer = load_model(config.start, param_dtype=dtype)
        model, tokenizer = model or loaded, tokenizer or its_tokenizer
        config = dataclasses.replace(config, start=lasting(config.start))
    return dataclasses.replace(config, model=with_own(model, config.model)), params, tokenizer


def _faster_unstacked(config: TrainConfig, mesh) -> bool:
    """Return whether to take the stack of layers apart, although it takes longer to compile.

    A scan copies what the backward pass needs into stacks that it first fills with zeros, unless all of it is
    computed again. Layers that come from the host's memory come one after another, and stay a stack.
    """
    if config.offload == "state":
        return False
    if mesh.devices.flat[0].platform == "cpu":
        # Not on several simulated devices: collectives of unstacked layers can run in different
        # orders there, and wait for each other. And XLA for CPUs merges what is computed again with what was
        # computed first, if both are in one place: nothing would be saved.
        return mesh.size == 1 and config.model.remat in ("none", "everything_saveable")
    return mesh.devices.flat[0].platform == "gpu" and config.model.remat not in ("full", "offload")


def _with_vocabulary(
    config: TrainConfig, corpus: data.Corpus, made: models.VocabGroups | None
) -> TrainConfig:
    """Fill in what the tokenizer decides."""
    tokenizer, groups = corpus.tokenizer, config.model.vocab_groups
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer '{config.tokenizer}' has ids up to {tokenizer.vocab_size - 1}, beyond "
            f"model.vocab_size={vocab_size}; set it to at least {tokenizer.vocab_size}"
        )
    if config.vocab_groups is not None and made is not None:
        groups = made
    elif config.vocab_groups is not None:
        name, slots = vocabulary.parse_groups(config.vocab_groups)
        # Counting reads all of the text, so only where the counts are used.
        counted = name == "frequency"
        counts = np.bincount(corpus.train.ids, minlength=tokenizer.vocab_size) if counted else None
        order = vocabulary.vocab_order(name, tokenizer, counts=counts, seed=config.seed)
        order = np.concatenate([order, np.arange(tokenizer.vocab_size, vocab_size)])  # unused ids last
        groups = models.VocabGroups.of(order, slots, tokenizer.fingerprint)
    elif groups is not None and groups.tokenizer not in ("", tokenizer.fingerprint):
        raise UserError(
            f"model.vocab_groups were made for another tokenizer than '{config.tokenizer}'; train with that "
            "one, or set vocab_groups, which makes new ones"
        )
    model = dataclasses.replace(config.model, vocab_size=vocab_size, vocab_groups=groups)
    return dataclasses.replace(config, model=model)
