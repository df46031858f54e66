"""Log-probabilities of continuations of a context that is read once for all of them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.score.sequences import TOKENS_PER_BATCH, check_ids, padded_length, progress_bar


class Choice(NamedTuple):
    """What a model says of one continuation."""

    log_prob: float  # nats, summed over its tokens
    tokens: int
    is_greedy: bool  # each of its tokens is the likeliest one


def score_choices(
    config: models.ModelConfig,
    params,
    contexts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> list[list[Choice]]:
    """Score the continuations of each context.

    A context is read once, into a key-value cache that its continuations share. Contexts of similar length
    share a batch.

    Args:
      config: the model.
      params: its parameters.
      contexts: token ids, at least one each (the end-of-text token for an empty text).
      choices: for each context its continuations, at least one token each.
      tokens_per_batch: what one call computes at most, unless one context is longer.
      progress: show a bar.

    Raises:
      UserError: an empty context or continuation, ids that the model does not know, or a context and a
        continuation that together exceed the model's context.

    Examples:
      >>> config = models.get_preset("gpt2-nano", vocab_size=256)
      >>> params = models.init(config, jax.random.key(0))
      >>> [[yes, no]] = score_choices(config, params, [[1, 2, 3]], [[[4], [5, 6]]])
      >>> yes.tokens, no.tokens
      (1, 2)
    """
    models.check_params(config, params)
    if len(contexts) != len(choices):
        raise UserError(
            f"{len(contexts)} contexts and continuations for {len(choices)}; give a list for each"
        )
    check_ids(config, contexts, "a context")
    check_ids(config, [one for some in choices for one in some], "a continuation")
    for context, some in zip(contexts, choices, strict=True):
        longest = len(context) + max((len(one) for one in some), default=1) - 1
        if longest > config.context_length:
            raise UserError(
                f"a context of {len(context)} tokens with its longest continuation exceeds the model's "
                f"{config.context_length}; shorten it from the left"
            )
    results: list[list[Choice]] = [[] for _ in contexts]
    with progress_bar(sum(map(len, choices)), progress) as bar:
        for rows, arrays in _batches(contexts, choices, tokens_per_batch):
            log_probs_R, greedy_R = jax.device_get(_score(config, params, arrays))
            place = 0
            for row in rows:
                for one in choices[row]:
                    results[row].append(Choice(float(log_probs_R[place]), len(one), bool(greedy_R[place])))
                    place += 1
            bar.update(place)
    return results


def label_log_probs(
    config: models.ModelConfig, params, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return log p(label | prompt), normalised over the labels: float64 [N, labels].

    Args:
      config: the model.
      params: its parameters.
      prompts: token ids of N prompts.
      labels: token ids of each label, of one token or several.

    Raises:
      UserError: see `score_choices`; two labels that are equal.
    """
    if len({tuple(label) for label in labels}) < len(labels):
        raise UserError("two labels have the same tokens; give labels that differ")
    scored = score_choices(config, params, prompts, [labels] * len(prompts))
    joint_NY = np.array([[choice.log_prob for choice in row] for row in scored])
    return joint_NY - np.logaddexp.reduce(joint_NY, axis=1, keepdims=True)


class _Batch(NamedTuple):
    prefix_CP: np.ndarray  # all but a context's last token, padded on the left
    mask_CP: np.ndarray  # False at padding
    parent_R: np.ndarray  # the context of each continuation
    inputs_RT: np.ndarray  # the context's last token and the continuation's, but its last
    targets_RT: np.ndarray
    counted_RT: np.ndarray  # False at padding, which is on the right


def _batches(contexts, choices, tokens_per_batch) -> Iterator[tuple[list[int], _Batch]]:
    """Yield (which contexts, their arrays): contexts of similar length, the longest first."""
    order = sorted(range(len(contexts)), key=lambda row: -len(contexts[row]))
    order = [row for row in order if choices[row]]
    while order:
        P = padded_length(max(1, len(contexts[order[0]]) - 1))
        rows, longest, count = [], 1, 0
        while order:
            row = order[0]
            T = padded_length(max(longest, *map(len, choices[row])))
            forked = (count + len(choices[row])) * (P + T)
            differs = padded_length(max(1, len(contexts[row]) - 1)) != P
            if rows and (differs or max(forked, (len(rows) + 1) * P) > tokens_per_batch):
                break
            rows.append(order.pop(0))
            longest, count = max(longest, *map(len, choices[row])), count + len(choices[row])
        yield rows, _pack(contexts, choices, rows, P, padded_length(longest))


def _pack(contexts, choices, rows, P, T) -> _Batch:
    C, R = (1 << (n - 1).bit_length() for n in (len(rows), sum(len(choices[row]) for row in rows)))
    prefix_CP, mask_CP = np.zeros((C, P), np.int32), np.zeros((C, P), bool)
    parent_R = np.zeros(R, np.int32)
    inputs_RT, targets_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
    counted_RT, place = np.zeros((R, T), bool), 0
    for number, row in enumerate(rows):
        *prefix, last = contexts[row]
        if prefix:
            prefix_CP[number, -len(prefix) :], mask_CP[number, -len(prefix) :] = prefix, True
        for one in choices[row]:
            n = len(one)
            parent_R[place] = number
            inputs_RT[place, :n] = [last, *one[:-1]]
            targets_RT[place, :n], counted_RT[place, :n] = one, True
            place += 1
    return _Batch(prefix_CP, mask_CP, parent_R, inputs_RT, targets_RT, counted_RT)


@partial(jax.jit, static_argnames="config")
def _score(config, params, batch: _Batch):
    prefix_CP, mask_CP, parent_R, inputs_RT, targets_RT, counted_RT = batch
    cache = models.init_cache(config, prefix_CP.shape[0], prefix_CP.shape[1] + inputs_RT.shape[1])
    _, cache = models.decode(config, params, prefix_CP, cache, mask_BT=mask_CP)
    fork = {"key": cache["key"][:, parent_R], "value": cache["value"][:, parent_R]}
    cache = cache | fork | {"valid": cache["valid"][parent_R]}
    hidden_RTD, _ = models.decode(config, params, inputs_RT, cache)

    def of_row(row):  # a row at a time: [R, T, V] logits would be the largest array by far
        hidden_TD, targets_T, counted_T = row
        logits_TV = models.logits(config, params, hidden_TD)
        target_T = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=1)[:, 0]
        log_prob_T = target_T - jax.nn.logsumexp(logits_TV, axis=1)
        greedy_T = target_T >= jnp.max(logits_TV, axis=1)
        return jnp.sum(log_prob_T, where=counted_T), jnp.all(greedy_T | ~counted_T)

    return jax.lax.map(of_row, (hidden_RTD, targets_RT, counted_RT))
