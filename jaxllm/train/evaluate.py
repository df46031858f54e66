"""Held-out loss and bits per byte."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxllm import data
from jaxllm.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on text it was not trained on."""

    loss: float  # nats a token
    bits_per_byte: float  # the same per UTF-8 byte of text: comparable between tokenizers
    tokens: int  # that were scored


def evaluate(
    job, params, *, max_batches: int = 0, before_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """Score parameters on the held-out documents.

    Bits per byte are nats a token, over ln 2, times the tokens a byte of the held-out text.

    Args:
      job: the run (`jaxllm.train.prepare`).
      params: the model's parameters.
      max_batches: read only so many batches, the same ones each time; 0 reads all.
      before_batch: is called before each one.

    Raises:
      UserError: the loss counts no token.
    """
    valid = job.corpus.valid
    batches = data.eval_batches(
        valid,
        batch_size=job.config.batch_size,
        seq_len=job.config.seq_len,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    sums = []
    for batch in itertools.islice(batches, max_batches or None):
        before_batch()
        sums.append(job.eval_step(params, job.put(batch)))
    total = sum(float(loss) for loss, _ in sums)
    count = sum(float(n) for _, n in sums)
    if not count:
        raise UserError("no token of the held-out text counts in the loss; give a loss that counts some")
    mean = total / count
    return Evaluation(mean, mean / math.log(2) * len(valid) / valid.num_bytes, int(count))
