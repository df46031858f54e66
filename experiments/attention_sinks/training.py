"""A decoder on Bigram-Backcopy with one of three attentions: trained once, kept with its curve."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.grid import check_seeds, code_digest
from experiments.mad.training import solver, training_task
from experiments.shared.epochs import epochs, prepare_epochs, train_epochs
from jaxllm import models
from jaxllm.config import Config, Count, NotNegative, Positive, Seed, UserPath
from jaxllm.errors import UserError
from jaxllm.interpret import activation_statistics
from jaxllm.kept_result import kept_result
from jaxllm.synthetic import Backcopy
from jaxllm.train import Run, to_dict

SINKS = {"softmax": -math.inf, "softmax-1": 0.0, "learned": "learned"}  # the logit of a key without a value
BEGINS = {"begin": True, "none": False}  # a token of its own begins each sequence, or none does
VARIANTS = tuple(f"{attention}, {begin}" for begin in BEGINS for attention in SINKS)
_TEST_SEED = 2**31  # no run's own


@dataclass(frozen=True)
class AttentionSinksConfig(Config):
    """The task, the model, and how it is trained."""

    layers: Count = 2
    embed_dim: Count = 64
    heads: Count = 2
    length: Count = 64
    triggers: Count = 3
    text: UserPath = "sotu"  # whose bigrams are learned
    train: Count = 12_800  # sequences, each read once in the small run
    test: Count = 128
    steps: Count = 400
    batch_size: Count = 32
    points: Count = 10  # evaluations on the way
    learning_rate: Positive = 3e-3
    warmup_steps: Count = 40
    weight_decay: NotNegative = 0.1
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    out: UserPath = "runs/attention-sinks"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)
        if self.steps < self.points:
            raise UserError(f"points is {self.points} of {self.steps} steps; give at most one a step")

    def model(self, attention: str, vocab_size: int) -> models.ModelConfig:
        """Return a decoder whose heads may all turn to nothing, as much as their attention lets them."""
        return models.ModelConfig(
            vocab_size=vocab_size, num_layers=self.layers, embed_dim=self.embed_dim, num_heads=self.heads,
            context_length=self.length, qkv_bias=False, out_bias=False, mlp_bias=False,
            norm="rmsnorm_scalar", norm_bias=None, sink_logit=SINKS[attention],
        )  # fmt: skip


def kept_cell(config: AttentionSinksConfig, task: Backcopy, variant: str, seed: int) -> dict[str, Any]:
    """Train a variant, unless it was; return its curve: what `measure` says before and during training."""
    decisive = {name: value for name, value in to_dict(config).items() if name not in ("seeds", "out")}
    return kept_result(
        Path(config.out, "cells", f"{variant.replace(', ', '-')}-{seed}.json"),
        lambda: _train(config, task, variant, seed),
        config=decisive, variant=variant, seed=seed, chances=float(np.sum(task.chances_VV**2)),
        code=code_digest("mad/training.py", "shared/epochs.py"),
    )  # fmt: skip


def _train(config, task, variant, seed):
    attention, begin = variant.split(", ")
    model = config.model(attention, task.vocab_size)
    drawn = functools.partial(task.draw, length=config.length, begin=BEGINS[begin])
    train, test = (
        dict(zip(("inputs", "targets"), drawn(rows, seed=at), strict=True))
        for rows, at in ((config.train, seed), (config.test, _TEST_SEED + seed))
    )
    said = lambda params: measure(model, params, task, test)
    start = models.init(model, jax.random.key(seed))
    params, curve = train_epochs(
        _prepared(config, model), start, lambda: epochs(train, config.batch_size, seed), said, seed
    )
    if params is None:
        raise UserError(f"{variant} diverged with seed {seed}; lower learning_rate, {config.learning_rate}")
    return {"curve": [{"step": 0} | said(start), *curve]}


@functools.cache
def _prepared(config: AttentionSinksConfig, model: models.ModelConfig) -> Run:
    rate = optax.warmup_constant_schedule(0.0, config.learning_rate, config.warmup_steps)
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 2, params)
    weights = optax.adamw(rate, b2=0.95, weight_decay=config.weight_decay, mask=matrices)
    return prepare_epochs(
        training_task(solver(model), config.batch_size, config.length), steps=config.steps,
        measure_every=config.steps // config.points,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), weights),
    )  # fmt: skip


def measure(model: models.ModelConfig, params: Any, task: Backcopy, test: dict) -> dict[str, float]:
    """Return the sink, the outliers, and the loss where a copy is due and elsewhere, nats a token."""
    found = activation_statistics(model, params, [{"tokens": jnp.asarray(test["inputs"])}]).summary()
    losses_NT = np.asarray(_losses(model, params, test["inputs"], test["targets"]), np.float64)
    copies_NT = task.after_trigger(test["inputs"])
    return found | {"copy_loss": losses_NT[copies_NT].mean(), "other_loss": losses_NT[~copies_NT].mean()}


@functools.partial(jax.jit, static_argnums=0)
def _losses(model, params, inputs_NT, targets_NT):
    return optax.softmax_cross_entropy_with_integer_labels(models.apply(model, params, inputs_NT), targets_NT)
