"""The output heads that vocabulary compression is compared with, and what a training step of each costs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.turns import waiting_step
from jaxllm import host_memory, models, targets
from jaxllm.errors import UserError, unknown
from jaxllm.models.config import GROUP_HEADS
from jaxllm.targets.train_step import with_vocabulary
from jaxllm.text import TrainConfig, prepare_shapes, unstacked
from jaxllm.text.precision import with_precision
from jaxllm.train import LossFunction


class Head(NamedTuple):
    """What a run predicts tokens with."""

    tied: bool = True
    full_logits: bool = False  # optax's loss on logits that are all in memory: the paper's baseline
    group_head: str | None = None  # None: a dense head
    groups: str | None = None
    remat: bool = False  # compute every layer again in the backward pass

    def of(self, run: TrainConfig) -> TrainConfig:
        """Return a run with this head."""
        changed = dict(tie_embeddings=self.tied)
        if self.group_head is not None:
            changed["group_head"] = self.group_head
        if self.remat:
            changed["remat"] = "full"
        model = dataclasses.replace(run.model, **changed)
        return dataclasses.replace(run, model=model, vocab_groups=self.groups)

    def replacements(self, run: TrainConfig, *, one_cpu: bool) -> dict[str, Any]:
        """Return what `train` is given besides the run: nothing for its own loss, which never has all logits.

        Args:
          run: the run.
          one_cpu: it runs on one CPU device, where `train` takes the stack of layers apart for its own loss,
            unless layers are computed again: there a CPU would compute nothing again.
        """
        if not self.full_logits:
            return {}
        apart = one_cpu and self.of(run).model.remat == "none"
        return dict(loss=full_logits_loss(self.of(run)), views=(unstacked,) if apart else ())


_DENSE = {
    "full_tied": Head(full_logits=True),
    "full_untied": Head(tied=False, full_logits=True),
    "fused_tied": Head(),
    "fused_untied": Head(tied=False),
}


def get_head(name: str) -> Head:
    """Return the head of this name: full_tied, full_untied, fused_tied, fused_untied, or GROUP_HEAD/MAP.

    "own" has the token table for vectors, "own_untied" vectors of its own. Any may end in +remat.

    Raises:
      UserError: there is no such head.

    Examples:
      >>> get_head("hidden/merge_tree:224")
      Head(tied=True, full_logits=False, group_head='hidden', groups='merge_tree:224', remat=False)
    """
    if name.endswith("+remat"):
        return get_head(name.removesuffix("+remat"))._replace(remat=True)
    if name in _DENSE:
        return _DENSE[name]
    group_head, slash, groups = name.partition("/")
    tied = not group_head.endswith("_untied")
    group_head = group_head.removesuffix("_untied")
    if not slash or group_head not in GROUP_HEADS or not (tied or group_head == "own"):
        known = [*_DENSE, *(f"{head}/MAP" for head in (*GROUP_HEADS, "own_untied"))]
        raise unknown("head", name, known)
    return Head(tied=tied, group_head=group_head, groups=groups)


def full_logits_loss(run: TrainConfig) -> LossFunction:
    """Return next-token cross-entropy by optax on float32 logits of the whole batch."""
    model = with_precision(run).model

    def loss(params, batch, key):
        del key
        segments = batch["segment_ids"] if run.isolate_documents else None
        # The run's own is None until its tokenizer is made.
        known = dataclasses.replace(model, vocab_size=len(params["embed"]["tokens"]))
        logits_BTV = models.apply(known, params, batch["tokens"], segment_ids=segments)
        loss_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
        count = jnp.sum(batch["mask"])
        return jnp.sum(loss_BT * batch["mask"]) / jnp.where(count == 0, 1, count), {"token_count": count}

    return loss


def compile_step(name: str, run: TrainConfig, machine: str) -> targets.Forecast:
    """Compile a training step of a run with this head.

    Raises:
      UserError: the machine's compiler is not installed.
    """
    head, one_cpu = get_head(name), targets.get_target(machine).platform == "cpu"
    return targets.compile_train_step(head.of(run), machine, **head.replacements(run, one_cpu=one_cpu))


def largest_batch(name: str, run: TrainConfig, budget: int) -> int:
    """Return the most sequences, to an eighth, whose step on this CPU needs at most `budget` bytes.

    Raises:
      UserError: not even two sequences fit.
    """

    def peak(batch_size):
        return compile_step(name, dataclasses.replace(run, batch_size=batch_size), "cpu").peak_bytes

    fits, needed = 2, peak(2)
    if needed > budget:
        raise UserError(f"a step of '{name}' with 2 sequences needs {needed} bytes; raise the budget")
    slope, too_many, guess = 1.0, None, 8
    while too_many is None or too_many - fits > max(1, fits // 8):
        found = peak(guess)
        slope = max((found - needed) / (guess - fits), 1.0)  # memory grows in proportion, about
        if found <= budget:
            fits, needed = guess, found
        else:
            too_many = guess
        guess = fits + max(1, int((budget - needed) / slope))
        if too_many is not None:
            guess = min(guess, too_many - 1)
    return fits


def make_step(name: str, run: TrainConfig):
    """Return a training step on random tokens that waits for its loss, for `take_turns`."""
    host_memory.keep_freed_memory()
    head = get_head(name)
    run = with_vocabulary(head.of(run))
    job = prepare_shapes(run, **head.replacements(run, one_cpu=True), devices=jax.devices()[:1])
    # Tokens as unequally frequent as words: the sorted loss depends on it.
    ranks = np.random.default_rng(0).zipf(1.2, (run.batch_size, run.seq_len + 1))
    return waiting_step(job, ((ranks - 1) % run.model.vocab_size).astype(np.int32))
