"""The log-probability of each token of given sequences, batched by length."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxllm import models
from jaxllm.errors import UserError

TOKENS_PER_BATCH = 4096  # that a call of the model computes, padding included


def score_sequences(
    config: models.ModelConfig,
    params,
    sequences: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> list[np.ndarray]:
    """Return log p(token | those before it) of every token but the first: float32 [n - 1] a sequence.

    Sequences of similar length share a batch, padded on the right to one of few lengths, so that few
    programs are compiled. The full logits are never in memory.

    Args:
      config: the model.
      params: its parameters.
      sequences: token ids, at least one each.
      tokens_per_batch: what one call computes at most, unless one sequence is longer.
      progress: show a bar.

    Raises:
      UserError: an empty sequence, ids that the model does not know, or more tokens than its context.

    Examples:
      >>> config = models.get_preset("gpt2-nano", vocab_size=256)
      >>> params = models.init(config, jax.random.key(0))
      >>> [len(row) for row in score_sequences(config, params, [[1, 2, 3], [4], [5, 6]])]
      [2, 0, 1]
    """
    models.check_params(config, params)
    return map_sequences(config, sequences, partial(_score, config, params), tokens_per_batch, progress)


def map_sequences(
    config: models.ModelConfig,
    sequences: Sequence[Sequence[int]],
    function: Callable[[np.ndarray], Any],
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> list[Any]:
    """Call a function of a batch of ids, and return its result for each sequence without the padding.

    Args:
      config: the model.
      sequences: token ids, at least one each.
      function: int32 [B, T + 1], 0 where a row is padded -> pytree of arrays [B, T], one value for each token
        that follows another.
      tokens_per_batch: see `score_sequences`.
      progress: see `score_sequences`.

    Raises:
      UserError: see `score_sequences`.
    """
    check_ids(config, sequences, "a sequence")
    results: list[Any] = [None] * len(sequences)
    with progress_bar(len(sequences), progress) as bar:
        for rows, tokens_BU in _batches(sequences, config.context_length, tokens_per_batch):
            values = jax.device_get(function(tokens_BU))
            for place, row in enumerate(rows):
                length = len(sequences[row]) - 1
                results[row] = jax.tree.map(lambda x_BT: x_BT[place, :length], values)  # noqa: B023
            bar.update(len(rows))
    return results


def check_ids(config: models.ModelConfig, sequences: Sequence[Sequence[int]], what: str) -> None:
    """Check that a model can score sequences of ids.

    Args:
      what: how messages name one of them.

    Raises:
      UserError: see `score_sequences`.
    """
    for ids in sequences:
        if not len(ids):
            raise UserError(f"{what} is empty; give at least one token (the end-of-text token will do)")
        try:
            models.check_ids(np.asarray(ids), config.known_vocab_size, f"{what}'s ids")
        except UserError as error:
            raise UserError(f"{error}; use the tokenizer that the model was trained with") from error
        if len(ids) - 1 > config.context_length:
            raise UserError(
                f"{what} has {len(ids)} tokens and the model's context holds {config.context_length}; "
                "shorten it, or score it in windows (score.score_texts)"
            )


def progress_bar(total: int, shown: bool):
    """Return a tqdm bar over so many sequences, drawn only if `shown`."""
    return tqdm(total=total, desc="scored", unit=" sequences", disable=not shown)


def padded_length(length: int) -> int:
    """Return the length that a row is padded to: by 3 tokens or 12.5 % at most.

    Examples:
      >>> [padded_length(n) for n in (1, 33, 100, 1000)]
      [4, 36, 104, 1024]
    """
    step = max(4, 2 ** max(0, length.bit_length() - 4))
    return -(-length // step) * step


def _batches(sequences, context_length: int, tokens_per_batch: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (which sequences, their ids [B, U] padded with 0), the longest first: memory fails at once."""
    lengths: dict[int, list[int]] = {}
    for row, ids in enumerate(sequences):
        length = min(padded_length(max(1, len(ids) - 1)), context_length)
        lengths.setdefault(length, []).append(row)
    for length in sorted(lengths, reverse=True):
        size = max(1, tokens_per_batch // length)
        for start in range(0, len(lengths[length]), size):
            rows = lengths[length][start : start + size]
            tokens_BU = np.zeros((min(size, 1 << (len(rows) - 1).bit_length()), length + 1), np.int32)
            for place, row in enumerate(rows):
                tokens_BU[place, : len(sequences[row])] = sequences[row]
            yield rows, tokens_BU


@partial(jax.jit, static_argnames="config")
def _score(config, params, tokens_BU):
    # What pads the right of a row comes after its tokens, which therefore do not see it.
    hidden_BTD = models.trunk(config, params, tokens_BU[:, :-1])
    return models.token_log_probs(config, params, hidden_BTD, tokens_BU[:, 1:])
