"""Text to its next token, as a task."""

import itertools
import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxllm import data, models
from jaxllm.text.config import TrainConfig
from jaxllm.text.load import TOKENIZER_FILE
from jaxllm.text.resume import TextBatches
from jaxllm.train.prepare import Run
from jaxllm.train.task import LossFunction, MeanLoss, Task


def text_task(config: TrainConfig, corpus: data.Corpus | None, loss: LossFunction | None = None) -> Task:
    """Return the task that a config describes.

    Args:
      config: the run, with its model's vocabulary and types filled in.
      corpus: its text; None: the run is only compiled.
      loss: replaces next-token cross-entropy.

    Raises:
      UserError: the model sees the next token, and no other loss is given.
    """
    if loss is None:
        models.check_decodes(config.model)
    shape = (config.batch_size, config.seq_len)
    answers = config.model.start_id is not None
    types = {"tokens": "int32", "targets": "int32", "mask": "float32"}
    types |= {"source": "int32", "source_mask": "int32"} if answers else {"segment_ids": "int32"}
    return Task(
        init=partial(models.init, config.model),
        axes=models.axes(config.model),
        batches=lambda: TextBatches(config, corpus),
        loss=loss or (answer_loss(config) if answers else next_token_loss(config)),
        evaluate=lambda params, mean_loss: held_out(config, corpus, params, mean_loss, config.eval_batches),
        evaluate_last=_evaluate_last(config, corpus),
        batch_shapes={name: jax.ShapeDtypeStruct(shape, np.dtype(kind)) for name, kind in types.items()},
        save=lambda folder: corpus.tokenizer.save(folder / TOKENIZER_FILE),
    )


def _evaluate_last(config: TrainConfig, corpus: data.Corpus | None):
    """Return the evaluation after the last step; None where it would read what the others do."""
    if corpus is None or config.final_eval_batches == config.eval_batches:
        return None
    there = data.count_eval_batches(
        corpus.valid, batch_size=config.batch_size, seq_len=config.seq_len, packed=config.packed,
        start_id=config.model.start_id,
    )  # fmt: skip
    before, last = (min(n or there, there) for n in (config.eval_batches, config.final_eval_batches))
    if before == last:
        return None

    def evaluate_last(params, mean_loss):
        if config.progress and jax.process_index() == 0:
            reads = "all that is held out" if last == there else "another part of what is held out"
            print(
                f"the last evaluation reads {reads}: {last:,} of {there:,} batches, and those above "
                f"{before:,} of them",
                file=sys.stderr,
            )
        return held_out(config, corpus, params, mean_loss, last)

    return evaluate_last


def next_token_loss(config: TrainConfig) -> LossFunction:
    """Return the next-token loss of a run, (params, batch, key) -> (mean, sums)."""

    def loss(params, batch, key):
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
            key=key,
        )

    return loss


def answer_loss(config: TrainConfig) -> LossFunction:
    """Return the loss of an encoder-decoder's answers, (params, batch, key) -> (mean, sums)."""

    def loss(params, batch, key):
        del key  # nothing is dropped
        context = models.encode(config.model, params, batch["source"], batch["source_mask"] > 0)
        hidden_BTD = models.trunk(config.model, params, batch["tokens"], context=context)
        options = dict(mask=batch["mask"], z_loss=config.z_loss)
        return models.hidden_loss(config.model, params, hidden_BTD, batch["targets"], **options)

    return loss


def evaluate(run: Run, params: Any, *, max_batches: int = 0) -> dict[str, float]:
    """Score parameters on the held-out documents.

    Returns {"loss": nats a token, "bits_per_byte": the same per UTF-8 byte of text, which is comparable
    between tokenizers, "tokens": that were scored}.

    Args:
      run: the run (`jaxllm.text.prepare`).
      params: the model's parameters.
      max_batches: read only so many batches, the same ones each time; 0 reads all.

    Raises:
      UserError: the loss counts no token.
    """
    return held_out(run.config, run.corpus, params, run.mean_loss, max_batches)


def held_out(
    config: TrainConfig, corpus: data.Corpus, params: Any, mean_loss: MeanLoss, max_batches: int
) -> dict[str, float]:
    """Score parameters by a run's `mean_loss`; see `evaluate`.

    Bits per byte are nats a token, over ln 2, times the tokens a byte of the held-out text; of examples, of
    what is predicted.
    """
    valid = corpus.valid
    batches = held_out_batches(config, corpus, max_batches)
    # Silent where it takes a moment, and where nobody watches.
    quiet = None if config.progress else True
    watched = tqdm(batches, desc="evaluating", unit="batch", delay=5, leave=False, disable=quiet)
    mean, count = mean_loss(params, watched)
    return {
        "loss": mean,
        "bits_per_byte": mean / math.log(2) * valid.num_predicted / valid.num_bytes,
        "tokens": int(count),
    }


def held_out_batches(
    config: TrainConfig, corpus: data.Corpus, max_batches: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Return this process's part of the held-out batches; the first few, unless `max_batches` is 0."""
    batches = data.eval_batches(
        corpus.valid,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        packed=config.packed,
        start_id=config.model.start_id,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return itertools.islice(batches, max_batches or None)
