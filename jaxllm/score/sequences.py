"""The log-probability of each token of given sequences, batched by length."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxllm import models
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
        for rows, size, length in batches(lengths, config.context_length, tokens_per_batch):
            tokens_BU = np.zeros((size, length + 1), np.int32)
            for place, row in enumerate(rows):
                tokens_BU[place, : len(sequences[row])] = sequences[row]
            values = jax.device_get(function(tokens_BU))
            for place, row in enumerate(rows):
                length = len(sequences[row]) - 1
                results[row] = jax.tree.map(lambda x_BT: x_BT[place, :length], values)  # noqa: B023
            bar.update(len(rows))
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
    return params | {"layers": _layers_apart(params["layers"])}


def padded(length: int, least: int = 4) -> int:
    """Return the length that a row, or a batch, is padded to: by `least` - 1 or 12.5 % at most.

    Examples:
      >>> [padded(n) for n in (1, 33, 100, 1000)], [padded(n, 1) for n in (1, 3, 33)]
      ([4, 36, 104, 1024], [1, 3, 36])
    """
    step = max(least, 2 ** max(0, length.bit_length() - 4))
    return -(-length // step) * step


class Batch(NamedTuple):
    """Which rows share a call of the model, and the shape that they are padded to."""

    rows: list[int]
    size: int
    length: int


def batches(lengths: Sequence[int], longest: int, tokens_per_batch: int) -> Iterator[Batch]:
    """Yield batches of rows of similar length, the longest first: memory fails at once.

    Args:
      lengths: of the rows.
      longest: what no row is padded beyond.
      tokens_per_batch: see `score_sequences`.

    Examples:
      >>> for batch in batches([5, 90, 100, 2, 99], longest=1024, tokens_per_batch=256): print(*batch)
      [2, 4] 2 104
      [1] 1 96
      [0] 1 8
      [3] 1 4
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        first = lengths[order[0]]
        length = min(padded(first), longest)
        most = max(1, tokens_per_batch // length)
        # Much shorter rows are better off in a batch of their own.
        near = next((i for i, row in enumerate(order[:most]) if lengths[row] < 0.8 * first), most)
        count = min(near, len(order))
        yield Batch(order[:count], min(padded(count, 1), most), length)
        order = order[count:]


_layers_apart = jax.jit(lambda layers: models.layers_apart({"layers": layers})["layers"])


@partial(jax.jit, static_argnames="config")
def _score(config, params, tokens_BU):
    # What pads the right of a row comes after its tokens, which therefore do not see it.
    hidden_BTD = models.trunk(config, params, tokens_BU[:, :-1])
    return models.token_log_probs(config, params, hidden_BTD, tokens_BU[:, 1:])
