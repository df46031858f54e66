"""A model that labels whole sequences: a linear layer without bias on what it holds at their last token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.long_range_arena.tasks import Labelled, LongRangeTask
from experiments.shared.epochs import Arrays, cut
from jaxllm import models
from jaxllm.axis_names import AxisNames
from jaxllm.models import LanguageModel
from jaxllm.train import Task


def arrays(part: Labelled) -> Arrays:
    """Return what a loss and an evaluation read of each sequence."""
    return {"inputs": part.inputs_NT, "last": part.last_N, "targets": part.labels_N}


def labels_logits(model: LanguageModel, params: Any, some: Arrays) -> jax.Array:
    """Return the logits of each sequence's label, float32 [B, classes].

    A causal model has not seen what stands after a sequence's last token: padding changes nothing.
    """
    hidden_BTD = models.trunk(model, models.layers_apart(params["model"]), some["inputs"])
    last_B1D = jnp.take_along_axis(hidden_BTD, some["last"][:, None, None], axis=1)
    return last_B1D[:, 0].astype(jnp.float32) @ params["labels"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(model: LanguageModel, classes: int, key: jax.Array) -> Any:
    """Return parameters to begin with: the model's, and the linear layer's."""
    keys = jax.random.split(key)
    kernel = jax.random.normal(keys[1], (model.embed_dim, classes), jnp.float32)
    return {"model": models.init(model, keys[0]), "labels": kernel * model.embed_dim**-0.5}


def labelling_task(model: LanguageModel, task: LongRangeTask, rows: int) -> Task:
    """Return cross-entropy of sequences' labels, in batches of so many rows; it has none yet."""

    def loss(params, batch, key):
        del key
        logits_BC = labels_logits(model, params, batch)
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, batch["targets"])
        return losses_B.mean(), {"token_count": losses_B.size}

    axes = {"model": models.axes(model), "labels": AxisNames(("embed", "labels"), ("embed",))}
    shapes = {"inputs": (rows, task.length), "last": (rows,), "targets": (rows,)}
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    init = functools.partial(drawn, model, task.classes)
    return Task(init, axes, lambda: iter(()), loss, batch_shapes=shapes)


@functools.partial(jax.jit, static_argnums=0)
def _said(model, params, some):
    return jnp.argmax(labels_logits(model, params, some), axis=-1)


def said(model: LanguageModel, params: Any, part: Labelled, rows: int = 50) -> np.ndarray:
    """Return the label that a model says of each sequence; rows are filled up, so that one program serves."""
    total = len(part.labels_N)
    whole = part.rows(np.minimum(np.arange(total + -total % rows), total - 1))
    found = [np.asarray(_said(model, params, some)) for some in cut(arrays(whole), rows)]
    return np.concatenate(found)[:total]


def by_difficulty(part: Labelled, right_N: np.ndarray) -> dict[str, float]:
    """Return the share that is right of each difficulty, and of all.

    Examples:
      >>> part = Labelled(*(np.zeros((3, 1), int),) * 1, *(np.zeros(3, int),) * 2, np.array([1, 1, 2]))
      >>> by_difficulty(part, np.array([True, False, True]))
      {'1': 0.5, '2': 1.0, 'all': 0.66...}
    """
    kinds = np.unique(part.difficulty_N)
    found = {str(one): float(right_N[part.difficulty_N == one].mean()) for one in kinds}
    return found | {"all": float(right_N.mean())}
