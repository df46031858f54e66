"""A run that trains an adapter, or some parameters, of a given model."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig, TrainOnly
from jaxllm.config import from_plain
from jaxllm.errors import UserError
from jaxllm.text.config import TrainConfig
from jaxllm.train.checksum import checksums
from jaxllm.train.task import Task


def adaptation(
    model: models.LanguageModel, lora: LoraConfig, train_only: str | None
) -> Lora | TrainOnly | None:
    """Return the view that a run's config describes; None: all of the model is trained.

    Raises:
      UserError: a name that the model does not have.
    """
    if lora.rank is not None:
        return Lora(model, lora)
    return None if train_only is None else TrainOnly(model, train_only)


def adapted(config: TrainConfig, task: Task, base: Any, apart: bool) -> tuple[Task, Any, Lora | TrainOnly]:
    """Return (the task of training a part of a model, what it starts from, its view).

    Args:
      config: the run, its model known.
      task: of training the whole model.
      base: its parameters; None: the run is only compiled.
      apart: take frozen layers apart, once: a step that did would copy them all.

    Raises:
      UserError: a name that the model does not have, parameters of another model.
    """
    view = adaptation(config.model, config.lora, config.train_only)
    key = jax.random.key(config.seed)
    start, sums, apart = None, None, apart and isinstance(view, Lora)
    if base is None:
        frozen = jax.eval_shape(view.begin, models.shapes(config.model), key)[1]
        frozen = jax.eval_shape(models.layers_apart, frozen) if apart else frozen
    else:
        models.check_params(config.model, base)
        kind = jnp.dtype(config.model.param_dtype)  # as a base that is read from a file is
        base = jax.tree.map(lambda x: x if x.dtype == kind else x.astype(kind), base)
        start, frozen = view.begin(base, key)
        if apart:
            sums = checksums(frozen)  # the same on machines that take nothing apart
            frozen = jax.jit(models.layers_apart)(frozen)
    frozen_axes = view.frozen_axes(apart) if apart else view.frozen_axes()
    task = dataclasses.replace(
        task, init=view.init, axes=view.axes(), frozen=frozen, frozen_axes=frozen_axes, frozen_sums=sums
    )
    return task, start, view


def check_given(config: TrainConfig, start: Any) -> None:
    """Check that a run which adapts a model is given one.

    Raises:
      UserError: it is not.
    """
    if config.adapts and config.start is None and start is None:
        name = "train_only" if config.train_only is not None else "lora.rank"
        raise UserError(
            f"{name} trains a part of a model that is there already, and there is none; name it with "
            "--start: a run's folder, a pretrained folder or file, or a hub id"
        )


def lasting(source: str) -> str:
    """Return a source by a name that means the same in another working directory."""
    path = Path(os.path.expanduser(source))
    return str(path.absolute()) if path.exists() else source


def saved_adaptation(saved: dict[str, Any], model: models.LanguageModel) -> Lora | TrainOnly | None:
    """Return the view of a run by the config that its checkpoint remembers."""
    lora = from_plain(LoraConfig, saved.get("lora", {}), "the lora of a checkpoint")
    return adaptation(model, lora, saved.get("train_only"))


def merged(
    saved: dict[str, Any], view: Lora | TrainOnly, trained: dict, base: Any, name: str, folder
) -> dict:
    """Return the whole model of a run that trained a part of it.

    Args:
      saved: the config that its checkpoint remembers.
      view: the run's.
      trained: what it trained.
      base: the parameters of the model that it started from.
      name: what that is called.
      folder: the run's, for messages.

    Raises:
      UserError: the model is not the one that the run started from.
    """
    try:
        models.check_params(view.model, base)
        now = checksums(view.begin(base, jax.random.key(0))[1])
    except UserError:
        now = {}
    then = saved.get("frozen") or {}
    if now != then:
        names = sorted(set(then.items()) ^ set(now.items()))
        raise UserError(
            f"what {folder} holds was trained on another model than '{name}' (they differ in "
            f"'{names[0][0]}'); give the one that it was trained on"
        )
    return view.merge(trained, base)


def with_label_head(
    model: models.LanguageModel, params: Any, head: str, labels: Sequence[str], key: jax.Array
) -> tuple[models.LanguageModel, Any]:
    """Return (model, parameters) with a head of labels: its own where it has that one, else one drawn anew.

    Args:
      model: of an encoder, whatever its head.
      params: its parameters; None: there are none yet.
      head: "text_labels" or "token_labels".
      labels: their names.
      key: of what is drawn.
    """
    labels = tuple(labels)
    wanted = dataclasses.replace(model, head=head, labels=labels, tie_embeddings=True)
    if params is None or (model.head, model.labels) == (head, labels):
        return wanted, params
    drawn = jax.jit(models.init, static_argnums=0)(wanted, key)["head"]
    kind = jnp.dtype(model.param_dtype)
    return wanted, params | {"head": jax.tree.map(lambda x: x.astype(kind), drawn)}
