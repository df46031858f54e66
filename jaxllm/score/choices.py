"""Log-probabilities of continuations of a context, which is read once for all of them."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.data.length_batches import length_batches, padded_length
from jaxllm.errors import UserError
from jaxllm.score.sequences import TOKENS_PER_BATCH, check_ids, prepare, progress_bar

_BLOCK = 128  # tokens whose full logits are in memory at once


class Choice(NamedTuple):
    """What a model says of one continuation."""

    log_prob: float  # nats, summed over its tokens
    tokens: int
    is_greedy: bool  # each of its tokens is the likeliest one


def score_choices(
    config: models.LanguageModel,
    params,
    contexts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = False,
) -> list[list[Choice]]:
    """Score the continuations of each context.

    A context is read once, into a key-value cache that its continuations share; one with a single
    continuation is read together with that. Contexts of similar length share a batch. The head computes the
    logits that predict a continuation's tokens, and no others. Of an encoder-decoder contexts are sources,
    and continuations answers.

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
    params = prepare(config, params)
    check_contexts(config, contexts, choices)
    contexts, answers = _with_start(config, contexts), config.start_id is not None
    results: list[list[Choice]] = [[] for _ in contexts]
    alone = [row for row, some in enumerate(choices) if len(some) == 1 and not answers]
    several = [row for row, some in enumerate(choices) if len(some) > 1 or (answers and some)]
    with progress_bar(sum(map(len, choices)), progress) as bar:
        for rows, hidden_RTD in _read_whole(config, params, contexts, choices, alone, tokens_per_batch):
            starts = [len(contexts[row]) - 1 for row in rows]
            scored = _score_tokens(config, params, hidden_RTD, starts, [choices[row][0] for row in rows])
            for row, one in zip(rows, scored, strict=True):
                results[row].append(one)
            bar.update(len(rows))
        for rows, arrays in _forks(contexts, choices, several, tokens_per_batch):
            hidden_RTD = _read_forked(config, params, arrays)
            continuations = [one for row in rows for one in choices[row]]
            scored = iter(_score_tokens(config, params, hidden_RTD, [0] * len(continuations), continuations))
            for row in rows:
                results[row] += itertools.islice(scored, len(choices[row]))
            bar.update(len(continuations))
    return results


def check_contexts(config: models.LanguageModel, contexts, choices) -> None:
    """Check that a model can score continuations of contexts.

    Raises:
      UserError: see `score_choices`.
    """
    if len(contexts) != len(choices):
        raise UserError(
            f"{len(contexts)} contexts and continuations for {len(choices)}; give a list for each"
        )
    check_ids(config, contexts, "a context")
    check_ids(config, [one for some in choices for one in some], "a continuation")
    for context, some in zip(contexts, choices, strict=True):
        if config.start_id is not None:  # no distance is too long
            continue
        longest = len(context) + max((len(one) for one in some), default=1) - 1
        if longest > config.context_length:
            raise UserError(
                f"a context of {len(context)} tokens with its longest continuation exceeds the model's "
                f"{config.context_length}; shorten it from the left"
            )


def continuation_states(config, params, contexts, choices, tokens_per_batch: int) -> np.ndarray:
    """Return the hidden state that predicts each token of each continuation, in their order: [N, D]."""
    params, found, contexts = prepare(config, params), {}, _with_start(config, contexts)
    which = [row for row, some in enumerate(choices) if some]
    for rows, arrays in _forks(contexts, choices, which, tokens_per_batch):
        hidden_RTD = np.asarray(_read_forked(config, params, arrays))
        place = 0
        for row in rows:
            found[row] = [hidden_RTD[place + n, : len(one)] for n, one in enumerate(choices[row])]
            place += len(choices[row])
    return np.concatenate([x_nD for row in which for x_nD in found[row]])


def _with_start(config, contexts) -> list[Sequence[int]]:
    """Return what comes before continuations; of answers to a source, what they begin with too."""
    if config.start_id is None:
        return list(contexts)
    return [[*context, config.start_id] for context in contexts]


def label_log_probs(
    config: models.LanguageModel, params, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
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
    joint_NY = joint_NY.reshape(len(prompts), len(labels))  # of no prompts too
    return joint_NY - np.logaddexp.reduce(joint_NY, axis=1, keepdims=True)


def _read_whole(config, params, contexts, choices, rows, tokens_per_batch):
    """Yield (which contexts, hidden states [R, T, D] of each context with its one continuation)."""
    sequences = [[*contexts[row], *choices[row][0][:-1]] for row in rows]
    lengths = [len(ids) for ids in sequences]
    for batch in length_batches(lengths, config.context_length, tokens_per_batch):
        tokens_RT, _ = batch.fill(sequences)  # padding on the right is seen by no token
        yield [rows[number] for number in batch.rows], _trunk(config, params, tokens_RT)


class _Fork(NamedTuple):
    """Contexts, and continuations that share them."""

    prefix_CP: np.ndarray  # all but a context's last token, padded on the left
    mask_CP: np.ndarray  # False at padding
    parent_R: np.ndarray  # the context of each continuation
    inputs_RT: np.ndarray  # the context's last token and the continuation's, but its last


def _forks(contexts, choices, which, tokens_per_batch) -> Iterator[tuple[list[int], _Fork]]:
    """Yield (which contexts, their arrays): contexts of similar length, the longest first."""
    order = sorted(which, key=lambda row: -len(contexts[row]))
    while order:
        first = len(contexts[order[0]])
        P = padded_length(max(1, first - 1))
        rows, longest, count = [], 1, 0
        while order:
            row = order[0]
            T = padded_length(max(longest, *map(len, choices[row])))
            forked = (count + len(choices[row])) * (P + T)
            differs = len(contexts[row]) < 0.8 * first
            if rows and (differs or max(forked, (len(rows) + 1) * P) > tokens_per_batch):
                break
            rows.append(order.pop(0))
            longest, count = max(longest, *map(len, choices[row])), count + len(choices[row])
        yield rows, _pack(contexts, choices, rows, P, padded_length(longest))


def _pack(contexts, choices, rows, P, T) -> _Fork:
    C, R = (padded_length(n, 1) for n in (len(rows), sum(len(choices[row]) for row in rows)))
    prefix_CP, mask_CP = np.zeros((C, P), np.int32), np.zeros((C, P), bool)
    parent_R, inputs_RT, place = np.zeros(R, np.int32), np.zeros((R, T), np.int32), 0
    for number, row in enumerate(rows):
        *prefix, last = contexts[row]
        if prefix:
            prefix_CP[number, -len(prefix) :], mask_CP[number, -len(prefix) :] = prefix, True
        for one in choices[row]:
            parent_R[place] = number
            inputs_RT[place, : len(one)] = [last, *one[:-1]]
            place += 1
    return _Fork(prefix_CP, mask_CP, parent_R, inputs_RT)


def _score_tokens(config, params, hidden_RTD, starts, continuations) -> list[Choice]:
    """Return what the hidden states say of a continuation a row, predicted from `start` on."""
    lengths = [len(one) for one in continuations]
    N = sum(lengths)
    size = padded_length(N, 8) if N <= _BLOCK else -(-N // _BLOCK) * _BLOCK
    row_N, place_N, target_N = (np.zeros(size, np.int32) for _ in range(3))
    row_N[:N] = np.repeat(np.arange(len(lengths)), lengths)
    place_N[:N] = np.concatenate([s + np.arange(n) for s, n in zip(starts, lengths, strict=True)])
    target_N[:N] = np.concatenate(continuations)
    log_prob_N, greedy_N = jax.device_get(
        _token_log_probs(config, params, hidden_RTD, row_N, place_N, target_N)
    )
    firsts = np.cumsum([0, *lengths[:-1]])
    log_probs = np.add.reduceat(log_prob_N[:N].astype(np.float64), firsts)
    greedy = np.logical_and.reduceat(greedy_N[:N], firsts)
    return [Choice(float(a), n, bool(b)) for a, n, b in zip(log_probs, lengths, greedy, strict=True)]


_trunk = jax.jit(models.trunk, static_argnums=0)


@partial(jax.jit, static_argnames="config")
def _read_forked(config, params, fork: _Fork):
    """Return the hidden states [R, T, D] that predict the continuations' tokens."""
    prefix_CP, mask_CP, parent_R, inputs_RT = fork
    if config.start_id is not None:
        context = models.encode(config, params, prefix_CP, mask_CP)
        context = jax.tree.map(lambda x: x[parent_R], context)
        return models.trunk(config, params, inputs_RT, context=context)
    slots = prefix_CP.shape[1] + inputs_RT.shape[1]
    cache = models.empty_cache(config, params, len(prefix_CP), slots)
    _, cache = models.decode(config, params, prefix_CP, cache, mask_BT=mask_CP)
    return models.decode(config, params, inputs_RT, models.select_rows(cache, parent_R))[0]


@partial(jax.jit, static_argnames="config")
def _token_log_probs(config, params, hidden_RTD, row_N, place_N, target_N):
    """Return (log-probability, whether none is likelier) of each target, [N] each."""
    hidden_ND = hidden_RTD[row_N, place_N]
    block = min(len(row_N), _BLOCK)

    def of_block(blocks):
        hidden_1nD, target_n = blocks
        logits_nV = models.logits(config, params, hidden_1nD)[0]
        logit_n = jnp.take_along_axis(logits_nV, target_n[:, None], axis=1)[:, 0]
        return logit_n - jax.nn.logsumexp(logits_nV, axis=1), logit_n >= jnp.max(logits_nV, axis=1)

    blocks = hidden_ND.reshape(-1, 1, block, hidden_ND.shape[1]), target_N.reshape(-1, block)
    return jax.tree.map(jnp.ravel, jax.lax.map(of_block, blocks))
