"""A model of any architecture on one of MAD's tasks: its loss, its head where the task has one, its curve."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.epochs import Arrays, cut, share_right
from jaxllm import models
from jaxllm.axis_names import AxisNames
from jaxllm.models import LanguageModel
from jaxllm.synthetic import MadTask, draw_instances
from jaxllm.train import Task


class Solver(NamedTuple):
    """What a task trains: a model, and what reads it."""

    init: Callable[[jax.Array], Any]
    axes: Any
    logits: Callable[[Any, jax.Array], jax.Array]  # (params, inputs [B, T]) -> [B, T, V]


@functools.cache  # one, so that all runs of it share its programs
def solver(model: LanguageModel, decoder: bool = False) -> Solver:
    """Return a model as a task reads it: by its own head, or by the decoder of compression.

    Its few layers run one by one: a scan would cost small ones a quarter more.
    """
    if not decoder:
        apply = lambda params, inputs: models.apply(model, models.layers_apart(params), inputs)
        return Solver(functools.partial(models.init, model), models.axes(model), apply)
    D, V, T = model.embed_dim, model.vocab_size, model.context_length

    def init(key):
        keys = jax.random.split(key, 4)
        dense = lambda key, out: {
            "kernel": jax.random.normal(key, (D, out), jnp.float32) * D**-0.5,
            "bias": jnp.zeros(out, jnp.float32),
        }
        norms = {f"norm_{n}": jnp.ones(D, jnp.float32) for n in (0, 1)}
        layers = {f"dense_{n}": dense(keys[n], D) for n in (0, 1)}
        return {"model": models.init(model, keys[3]), "decoder": norms | layers | {"out": dense(keys[2], V)}}

    named = lambda out: {"kernel": AxisNames(("embed", out), ("embed",)), "bias": (out,)}
    axes = {"norm_0": ("embed",), "norm_1": ("embed",), "dense_0": named("decoded"),
            "dense_1": named("decoded"), "out": named("vocab")}  # fmt: skip
    places_TD = jnp.asarray(sinusoids(T, D))

    def logits(params, inputs_BT):
        decoder = params["decoder"]
        last_B1D = models.trunk(model, models.layers_apart(params["model"]), inputs_BT)[:, -1:]
        x_BTD = last_B1D.astype(jnp.float32) + places_TD[None]
        for n in (0, 1):
            x_BTD = jax.nn.gelu(_dense(_normed(x_BTD, decoder[f"norm_{n}"]), decoder[f"dense_{n}"]))
        return _dense(x_BTD, decoder["out"])

    return Solver(init, {"model": models.axes(model), "decoder": axes}, logits)


def _dense(x, params):
    return x @ params["kernel"] + params["bias"]


def _normed(x, gain):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain


def sinusoids(places: int, width: int) -> np.ndarray:
    """Return the sines and cosines of places, float32 [places, width].

    Examples:
      >>> print(sinusoids(2, 4).round(2))
      [[0.   0.   1.   1.  ] [0.84 0.01 0.54 1.  ]]
    """
    rates = 10_000.0 ** -(np.arange((width + 1) // 2) * 2 / width)
    angles = np.arange(places)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)


def mad_arrays(task: MadTask, part: str, seed: int) -> Arrays:
    """Return the instances of a part by name."""
    drawn = draw_instances(task, part, seed)
    return {"inputs": drawn.inputs_NT, "targets": drawn.targets_NT}


def training_task(solves: Solver, rows: int, length: int) -> Task:
    """Return cross-entropy of the counted targets, which stand where they are predicted; no batches yet.

    Args:
      rows: of a batch.
      length: of a row.
    """

    def loss(params, batch, key):
        del key
        logits_BTV, targets_BT = solves.logits(params, batch["inputs"]), batch["targets"]
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, jnp.maximum(targets_BT, 0))
        counted_BT = (targets_BT >= 0).astype(jnp.float32)
        count = jnp.sum(counted_BT)
        return jnp.sum(losses_BT * counted_BT) / count, {"token_count": count}

    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    shapes = {"inputs": shape, "targets": shape}
    return Task(solves.init, solves.axes, lambda: iter(()), loss, batch_shapes=shapes)


@functools.partial(jax.jit, static_argnums=0)
def _drawn(init, key):
    return init(key)


def drawn(solves: Solver, seed: int) -> Any:
    """Return parameters to begin with."""
    return _drawn(solves.init, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _said(logits, params, inputs_BT):
    """Return what is said [B, T], and its logits [B, T, V]."""
    logits_BTV = logits(params, inputs_BT)
    return jnp.argmax(logits_BTV, axis=-1), logits_BTV


def accuracy_of(solves: Solver, params: Any, test: Arrays, rows: int = 256) -> float:
    """Return the share of counted targets of the test that are predicted."""
    predict = lambda params, some: _said(solves.logits, params, some["inputs"])[0]
    return share_right(predict, params, test, rows)


def counted_log_probs(solves: Solver, params: Any, test: Arrays, rows: int = 256) -> np.ndarray:
    """Return log-probabilities at the counted targets, float32 [counted, V]."""
    counted = [
        np.asarray(_said(solves.logits, params, one["inputs"])[1])[one["targets"] >= 0]
        for one in cut(test, rows)
    ]
    return np.asarray(jax.nn.log_softmax(np.concatenate(counted)))
