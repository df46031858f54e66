"""The log-probability of each token of given sequences, batched by length."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxllm import models
from jaxllm.data.length_batches import length_batches
from jaxllm.errors import UserError

TOKENS_PER_BATCH = 4096  # that a call of the model computes, padding included


def score_sequences(
    config: models.LanguageModel,
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
      params: its parameters; what `prepare` returned saves time where many calls follow.
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
    if config.start_id is not None:
        raise UserError(
            "an encoder-decoder says nothing of a text alone; score its answers to sources: "
            "score.score_choices, or data with prompt and completion"
        )
    score = partial(_score, config, prepare(config, params))
    return map_sequences(config, sequences, score, tokens_per_batch, progress)


def map_sequences(
    config: models.LanguageModel,
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
        lengths = [max(1, len(ids) - 1) for ids in sequences]
        for batch in length_batches(lengths, config.context_length, tokens_per_batch):
            tokens_BU, _ = batch._replace(length=batch.length + 1).fill(sequences)
            values = jax.device_get(function(tokens_BU))
            for place, row in enumerate(batch.rows):
                length = len(sequences[row]) - 1
                results[row] = jax.tree.map(lambda x_BT: x_BT[place, :length], values)  # noqa: B023
            bar.update(len(batch.rows))
    return results


def check_ids(config: models.LanguageModel, sequences: Sequence[Sequence[int]], what: str) -> None:
    """Check that a model can score sequences of ids.

    Args:
      what: how messages name one of them.

    Raises:
      UserError: see `score_sequences`.
    """
    for ids in sequences:
        if np.ndim(ids) != 1:
            raise UserError(f"{what} is not a list of token ids; give a list of such lists")
        if not len(ids):
            raise UserError(f"{what} is empty; give at least one token (the end-of-text token will do)")
        try:
            models.check_ids(np.asarray(ids), config.known_vocab_size, f"{what}'s ids")
        except UserError as error:
            raise UserError(f"{error}; use the tokenizer that the model was trained with") from error
        if len(ids) - 1 > config.context_length and config.start_id is None:  # whose distances have no end
            raise UserError(
                f"{what} has {len(ids)} tokens and the model's context holds {config.context_length}; "
                "shorten it, or score it in windows (score.score_texts)"
            )


def check_tokenizer(tokenizer) -> None:
    """Check that there is one: a model read from weights alone has None.

    Raises:
      UserError: there is none.
    """
    if tokenizer is None:
        raise UserError(
            "the model has no tokenizer, which turning text into tokens needs; load one with "
            "data.load_tokenizer, or score token ids (score.score_sequences)"
        )


def progress_bar(total: int, shown: bool):
    """Return a tqdm bar over so many sequences, drawn only if `shown`."""
    return tqdm(total=total, desc="scored", unit=" sequences", disable=not shown)


def prepare(config: models.LanguageModel, params) -> dict:
    """Return the parameters as scoring reads them fastest; every function of this package takes them too.

    On a CPU the stack of layers is taken apart (a copy): a scan would copy the stack, and each layer out of
    it, at every call. What is apart already, such as a `Decoder`'s, is returned as it is.

    Raises:
      UserError: parameters of another config, or a model that cannot predict tokens one by one.
    """
    models.check_decodes(config)
    if models.is_apart(params):
        return params
    models.check_params(config, params)
    if jax.default_backend() != "cpu":
        return params
    return models.layers_apart(params)


@partial(jax.jit, static_argnames="config")
def _score(config, params, tokens_BU):
    # What pads the right of a row comes after its tokens, which therefore do not see it.
    hidden_BTD = models.trunk(config, params, tokens_BU[:, :-1])
    return models.token_log_probs(config, params, hidden_BTD, tokens_BU[:, 1:])
