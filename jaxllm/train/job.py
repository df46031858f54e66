"""Everything a run needs, built and checked before the first step."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import data, models, parallel, vocabulary
from jaxllm.errors import UserError
from jaxllm.optim import make_optimizer, mask_unsampled
from jaxllm.optim.check_chain import check_order
from jaxllm.subnetwork import (
    Rates,
    Schedule,
    Stage,
    check_schedule,
    extract,
    extract_in_turn,
    get_schedule,
    make_view,
    shrink,
)
from jaxllm.train.config import TrainConfig
from jaxllm.train.precision import get_precision
from jaxllm.train.state import TrainState, init_state, state_shardings
from jaxllm.train.step import LossFunction, make_eval_step, make_train_step


@dataclass(frozen=True)
class Job:
    """A checked run: nothing in it has been compiled or placed on a device yet."""

    config: TrainConfig  # with the model's vocabulary and types filled in
    corpus: data.Corpus | None  # None: the run is only compiled
    mesh: jax.sharding.Mesh
    shapes: TrainState  # ShapeDtypeStructs with shardings
    init: Any  # key -> TrainState, jitted; an array of the host's memory at a time
    train_steps: tuple[tuple[int, Any], ...]  # of each stage: (the step where it ends, its `train_step`)
    eval_step: Any  # (params, batch) -> (loss sum, count), jitted
    schedule: optax.Schedule | None  # of the learning rate; None with an optimizer from outside
    subnetworks: Schedule  # what of the model is trained when

    @property
    def model(self) -> models.ModelConfig:
        """The model being trained."""
        return self.config.model

    @property
    def train_step(self) -> Any:
        """(state, batch) -> (state, metrics), jitted, donates the state; the last stage's of several."""
        return self.train_steps[-1][1]

    def train_step_at(self, step: int) -> Any:
        """Return the `train_step` that takes step number `step`, counted from 0."""
        return next((train_step for end, train_step in self.train_steps if step < end), self.train_step)

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `train_step` takes as a batch, over all processes."""
        shape = (self.config.batch_size, self.config.seq_len)
        types = {"tokens": "int32", "targets": "int32", "segment_ids": "int32", "mask": "float32"}
        sharding = self._batch_sharding(shape)
        return {k: jax.ShapeDtypeStruct(shape, np.dtype(t), sharding=sharding) for k, t in types.items()}

    def batches(self) -> data.Batches:
        """Return this process's part of the endless training batches."""
        return data.batches(
            self.corpus.train,
            batch_size=self.config.batch_size,
            seq_len=self.config.seq_len,
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def learning_rates(self) -> np.ndarray | None:
        """Return the rate of every step, computed at once: the log should not run code a step."""
        if self.schedule is None:
            return None
        return np.asarray(jax.jit(jax.vmap(self.schedule))(np.arange(self.config.steps)))

    def put(self, batch: dict[str, np.ndarray]):
        """Place a process's part of a batch on its devices, split over data and fsdp."""

        def place(x):
            shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
            return jax.make_array_from_process_local_data(self._batch_sharding(shape), x)

        return jax.tree.map(place, batch)

    def _batch_sharding(self, shape) -> NamedSharding:
        return NamedSharding(self.mesh, parallel.partition_spec(("batch", None), shape, self.mesh))


def language_model_loss(config: TrainConfig, *, unstacked: bool = False) -> LossFunction:
    """Return the next-token loss of a run, (params, batch, key) -> (mean, sums).

    Args:
      config: the run.
      unstacked: take the stack of layers apart.
    """

    def loss(params, batch, key):
        del key
        if unstacked:
            params = models.layers_apart(params)
        segments = batch["segment_ids"] if config.isolate_documents else None
        return models.loss(
            config.model,
            params,
            batch["tokens"],
            batch["targets"],
            mask=batch["mask"],
            segment_ids=segments,
            z_loss=config.z_loss,
            microbatches=config.accumulate if config.offload == "state" else 1,
        )

    return loss


def prepare(
    config: TrainConfig,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    subnetworks: Schedule | None = None,
    devices: Sequence[jax.Device] | None = None,
    tokenizer: data.Tokenizer | None = None,
    vocab_groups: models.VocabGroups | None = None,
) -> Job:
    """Read the data, resolve the config and build the step functions.

    Args:
      config: the run.
      loss: replaces next-token cross-entropy; (params, batch, key) -> (mean, sums), see `LossFunction`.
      optimizer: replaces the chain that `config.optim` describes.
      subnetworks: replaces the schedule that `config.subnetwork` names.
      devices: which to use; None is all.
      tokenizer: replaces the one that `config.tokenizer` names.
      vocab_groups: replaces those that `config.vocab_groups` names.

    Raises:
      UserError: the data, the model and the devices do not fit together.
    """
    mesh = _make_mesh(config, devices)  # before the data: a mistake here shows at once
    subnetworks = _make_subnetworks(config, subnetworks, loss, mesh)
    corpus = data.prepare(
        config.data, tokenizer or config.tokenizer, seq_len=config.seq_len, text_column=config.text_column
    )
    config = _with_vocabulary(config, corpus, vocab_groups)
    return _build(config, corpus, mesh, loss, optimizer, subnetworks)


def prepare_shapes(
    config: TrainConfig,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    subnetworks: Schedule | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Job:
    """Build the step functions of a run without its data, to compile them.

    Args:
      config: the run; its model's vocabulary must be known.
      loss: see `prepare`.
      optimizer: see `prepare`.
      subnetworks: see `prepare`.
      devices: see `prepare`; they may be compile-only.

    Raises:
      UserError: the model and the devices do not fit together.
    """
    mesh = _make_mesh(config, devices)
    subnetworks = _make_subnetworks(config, subnetworks, loss, mesh)
    return _build(config, None, mesh, loss, optimizer, subnetworks)


def _make_mesh(config, devices):
    mesh = parallel.make_mesh(config.mesh, devices)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (ways * config.accumulate):
        raise UserError(
            f"batch_size {config.batch_size} cannot be split over {ways} devices x "
            f"accumulate={config.accumulate}; choose a multiple of {ways * config.accumulate}"
        )
    return mesh


def _make_subnetworks(config, subnetworks, loss, mesh) -> Schedule:
    """Return which part of the model is trained when, checked."""
    if subnetworks is None:
        if config.subnetwork is None:
            return Schedule((Stage(1.0, Rates()),))
        subnetworks = get_schedule(config.subnetwork, config.model.num_layers, config.steps)
    if loss is not None:
        raise UserError("loss= runs the whole model, and cannot train subnetworks; leave out one of the two")
    check_schedule(config.model, subnetworks, shards=mesh.shape["tensor"])
    return subnetworks


def _build(config, corpus, mesh, loss, optimizer, subnetworks) -> Job:
    config = _with_types(config)
    axes = models.axes(config.model)
    schedule = None
    plain = loss is None and optimizer is None and subnetworks == Schedule((Stage(1.0, Rates()),))
    if optimizer is None:
        optimizer = make_optimizer(config.optim, config.steps, axes)
        schedule = config.optim.make_schedule(config.steps)
    if config.unsampled == "freeze":
        optimizer = mask_unsampled(optimizer, axes)
    optimizer = get_precision(config.precision).wrap(optimizer)
    if config.model.remat == "offload":
        parallel.in_host_memory(NamedSharding(mesh, PartitionSpec()))  # raises if there is none
    unstacked = _faster_unstacked(config, mesh)
    eval_loss = loss or language_model_loss(config, unstacked=unstacked)

    init = partial(init_state, partial(models.init, config.model), optimizer)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    check_order(shapes.opt_state)
    shardings = state_shardings(shapes, optimizer, axes, mesh, offload=config.offload)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    cut = extract_in_turn if config.offload == "state" else extract

    @functools.cache
    def train_step(rates: Rates):
        part = dataclasses.replace(config, model=shrink(config.model, rates))
        step = make_train_step(
            loss or language_model_loss(part, unstacked=unstacked),
            optimizer,
            accumulate=1 if config.offload == "state" else config.accumulate,
            view=make_view(config.model, rates, subnetworks, axes, shards=mesh.shape["tensor"], cut=cut),
        )
        return jax.jit(_on(mesh, step), donate_argnums=0, out_shardings=(shardings, None))

    ends = subnetworks.ends(config.steps)
    if config.engine == "tiles":
        from jaxllm.train.tiled import tiled_step  # an import that only this engine needs

        train_steps = ((config.steps, tiled_step(config, shapes, list(mesh.devices.flat), plain)),)
    else:
        train_steps = tuple(zip(ends, [train_step(s.rates) for s in subnetworks.stages], strict=True))
    job = Job(
        config=config,
        corpus=corpus,
        mesh=mesh,
        shapes=shapes,
        init=_init_in_turn(init, shardings),
        train_steps=train_steps,
        eval_step=jax.jit(_on(mesh, make_eval_step(eval_loss))),
        schedule=schedule,
        subnetworks=subnetworks,
    )
    if loss is not None:
        _check_loss(jax.eval_shape(_on(mesh, loss), shapes.params, job.batch_shapes, jax.random.key(0)))
    return job


def _check_loss(returned) -> None:
    """Check what a loss from outside returns.

    Raises:
      UserError: something else than (mean, {"token_count": ...}), both scalars.
    """
    match returned:
        case (jax.ShapeDtypeStruct(shape=()), {"token_count": jax.ShapeDtypeStruct(shape=())}):
            return
    shapes = str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", returned))
    raise UserError(
        "loss= must return (mean, sums): a scalar, and a dict with the scalar 'token_count', what the mean "
        f"was divided by; it returned {shapes[:200]}"
    )


def _init_in_turn(init, shardings):
    """Return init, jitted; of the host's memory an array at a time, since together they may not fit."""
    places, structure = jax.tree.flatten(shardings)
    away = [i for i, place in enumerate(places) if place.memory_kind == parallel.HOST_MEMORY]
    if not away:
        return jax.jit(init, out_shardings=shardings)
    here = [i for i in range(len(places)) if i not in away]
    init = jax.jit(init, inline=True)  # traced once for all

    def some(which):
        def take(key):
            leaves = jax.tree.leaves(init(key))
            return [leaves[i] for i in which]

        return jax.jit(take, out_shardings=[places[i] for i in which])

    def run(key):
        made = {}
        for which in (here, *([i] for i in away)):
            made |= zip(which, some(which)(key), strict=True)
        return jax.tree.unflatten(structure, [made[i] for i in range(len(places))])

    return run


def _faster_unstacked(config: TrainConfig, mesh) -> bool:
    """Return whether to take the stack of layers apart, although it takes longer to compile.

    A scan copies what the backward pass needs into stacks that it first fills with zeros: a quarter of
    the time of GPT-2's step on an H100, unless all of it is computed again. Layers that come from the host's
    memory come one after another, and stay a stack.
    """
    if config.offload == "state":
        return False
    if mesh.devices.flat[0].platform == "cpu":
        # Not on several simulated devices: collectives of unstacked layers can run in different
        # orders there, and wait for each other. And XLA for CPUs merges what is computed again with what was
        # computed first, if both are in one place: nothing would be saved.
        return mesh.size == 1 and config.model.remat in ("none", "everything_saveable")
    return mesh.devices.flat[0].platform == "gpu" and config.model.remat not in ("full", "offload")


def _on(mesh, function):
    """Return a function that is traced on a mesh, which `parallel.constrain` then finds.

    Set here and not around the loop: other code, orbax for one, would also run on it.
    """

    @functools.wraps(function)
    def on_mesh(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return on_mesh


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


def _with_types(config: TrainConfig) -> TrainConfig:
    """Fill in what the precision policy decides."""
    precision = get_precision(config.precision)
    types = dict(param_dtype=precision.param_dtype, dtype=precision.dtype)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **types))
