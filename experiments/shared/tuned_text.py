"""Tune a model on short texts, one a sequence: all of it, or a LoRA adapter of a base that stays as it is."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig
from jaxllm.config import Config, Count, Positive
from jaxllm.errors import UserError
from jaxllm.train import RunConfig, Task, train


@dataclass(frozen=True)
class TuneConfig(Config):
    """How a model is tuned on short texts."""

    steps: Count = 200
    batch_size: Count = 16
    learning_rate: Positive = 1e-3
    lora: LoraConfig = LoraConfig(rank=8, targets="query,value,mlp_in,mlp_out")  # rank None: all is trained
    longest: Count = 48  # tokens; the rest of a text is cut


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts as sequences: what begins one, its ids, its end, padding."""

    tokens_NT: np.ndarray
    targets_NT: np.ndarray
    mask_NT: np.ndarray

    def __len__(self):
        return len(self.tokens_NT)

    @classmethod
    def of(cls, ids: np.ndarray) -> "Rows":
        """Make rows of ids [N, T + 1]: each but the first is predicted, none is padding."""
        return cls(ids[:, :-1], ids[:, 1:], np.ones(ids[:, 1:].shape, np.float32))


def encode_rows(tokenizer, texts: Sequence[str], longest: int, begin: Sequence[int] | None = None) -> Rows:
    """Return texts as rows of one length; the end is a target, the padding after it is not.

    Args:
      tokenizer: the model's.
      texts: one a row.
      longest: tokens of a row.
      begin: ids before each text; None: the end of another one.

    Raises:
      UserError: no texts.
    """
    if not len(texts):
        raise UserError("the population has no text to tune on; give it at least one")
    begin = [tokenizer.eos_id] if begin is None else list(begin)
    rows = [
        [*begin, *ids.tolist(), tokenizer.eos_id][: longest + 1]
        for ids in tokenizer.encode_batch(list(texts))
    ]
    length = max(map(len, rows)) - 1
    tokens = np.zeros((len(rows), length), np.int32)
    targets, mask = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
    for place, row in enumerate(rows):
        size = len(row) - 1
        tokens[place, :size], targets[place, :size], mask[place, :size] = row[:-1], row[1:], 1
    return Rows(tokens, targets, mask)


class Tuning(NamedTuple):
    """What a run of `tune` trains, how, and what it begins with."""

    task: Task
    run: RunConfig
    optimizer: optax.GradientTransformation
    view: Lora | None
    start: dict | None


def tuning(
    model: models.LanguageModel, params, rows: Rows, how: TuneConfig, *, seed: int, out: str | Path,
    apart: bool = False,
) -> Tuning:  # fmt: skip
    """Return what `tune` trains; of parameters that are shapes it can only be compiled."""

    def batches() -> Iterator[dict[str, np.ndarray]]:
        draw, size = np.random.default_rng([seed, 77]), min(how.batch_size, len(rows))
        while True:
            order = draw.permutation(len(rows))
            for at in range(0, len(order) - size + 1, size):
                some = order[at : at + size]
                yield dict(
                    tokens=rows.tokens_NT[some], targets=rows.targets_NT[some], mask=rows.mask_NT[some]
                )

    def loss(seen, batch, key):
        del key
        return models.loss(model, seen, batch["tokens"], batch["targets"], mask=batch["mask"])

    run = RunConfig(
        steps=how.steps, seed=seed, out=str(out), save_every=how.steps, eval_every=how.steps, keep_best=0,
        keep_last=1, log_every=25, progress=False,
    )  # fmt: skip
    warmup = min(how.steps // 10 + 1, 50)
    schedule = optax.warmup_cosine_decay_schedule(0.0, how.learning_rate, warmup, how.steps + 1, 0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    if params is None or how.lora.rank is None:
        task = Task(functools.partial(models.init, model), models.axes(model), batches, loss)
        return Tuning(task, run, optimizer, None, params)
    view, key = Lora(model, how.lora), jax.random.key(seed)
    is_shapes = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
    of = jax.eval_shape if is_shapes else lambda function, *given: function(*given)
    start, frozen = of(view.begin, params, key)
    frozen = of(jax.jit(models.layers_apart), frozen) if apart else frozen
    task = Task(
        view.init, view.axes(), batches, loss, frozen=frozen, frozen_axes=view.frozen_axes(apart=apart)
    )
    return Tuning(task, run, optimizer, view, None if is_shapes else start)


def tune(
    model: models.LanguageModel, params, rows: Rows, how: TuneConfig, *, seed: int, out: str | Path,
    apart: bool = False,
) -> dict:  # fmt: skip
    """Return the parameters after tuning, an adapter merged; a finished run in `out` is read again.

    Args:
      model: its config.
      params: what to begin with; None: drawn, and all of it is trained.
      rows: what to learn, drawn in a random order again and again.
      how: steps, rate, adapter.
      seed: of parameters and order.
      out: the run's folder.
      apart: take the frozen layers apart, once: for a base of many layers a scan would copy them.
    """
    job = tuning(model, params, rows, how, seed=seed, out=out, apart=apart)
    views = () if job.view is None else (job.view,)
    options = dict(optimizer=job.optimizer, start=job.start, devices=jax.devices()[:1])
    trained = train(job.task, job.run, views=views, **options).params
    return trained if job.view is None else job.view.merge(trained, params)


@functools.partial(jax.jit, static_argnums=0)
def _row_losses(model, params, tokens_BT, targets_BT, mask_BT):
    hidden_BTD = models.trunk(model, params, tokens_BT)
    return -(models.token_log_probs(model, params, hidden_BTD, targets_BT) * mask_BT).sum(-1)


def row_losses(model, params, rows: Rows, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return (nats of each row, its predicted tokens), [N] each."""
    found = []
    for at in range(0, len(rows), batch):
        some = np.arange(at, at + batch).clip(max=len(rows) - 1)
        arrays = rows.tokens_NT[some], rows.targets_NT[some], rows.mask_NT[some]
        found.append(np.asarray(_row_losses(model, params, *arrays))[: len(rows) - at])
    return np.concatenate(found), rows.mask_NT.sum(axis=1)
