"""Continuations scored under the distribution that a step makes of several models."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.generate import Beside, Decoder
from jaxllm.generate.combine import other_log_probs
from jaxllm.generate.reweight import Step
from jaxllm.score.choices import Choice, check_contexts, continuation_states
from jaxllm.score.sequences import TOKENS_PER_BATCH

_BLOCK = 64  # tokens whose full logits, of all models, are in memory at once


def score_combined_choices(
    decoder: Decoder,
    beside: Decoder | Beside | Sequence[Decoder | Beside],
    step: Step,
    contexts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    state: Any = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[list[Choice]]:
    """Score the continuations of each context under p~, as `score_choices` does under p.

    At each token of a continuation the step sees p and q after the context and the tokens before it, whole
    (nothing is truncated), as `combine_models` gives them in decoding.

    Args:
      decoder: the model.
      beside: the other models; see `combine_models`.
      step: see `combine_models`.
      contexts: token ids, at least one each.
      choices: for each context its continuations, at least one token each.
      state: of the step: a pytree of numbers.
      tokens_per_batch: what one call of a model computes at most.

    Raises:
      UserError: see `score_choices`; models of vocabularies that differ in size.

    Examples:
      >>> from jaxllm.generate import Suppress, suppression
      >>> config = models.get_preset("gpt2-nano", vocab_size=256)
      >>> one, two = (Decoder(config, models.init(config, jax.random.key(seed))) for seed in (0, 1))
      >>> [[yes, no]] = score_combined_choices(
      ...     one, two, Suppress(), [[1, 2]], [[[4], [5, 6]]], state=suppression()
      ... )
      >>> yes.tokens, no.tokens
      (1, 2)
    """
    beside = [beside] if isinstance(beside, Decoder | Beside) else list(beside)
    voices = [(decoder, ())]
    for one in beside:
        one = one if isinstance(one, Beside) else Beside(one)
        voices += [(one.decoder, tuple(prefix)) for prefix in one.prefixes]
    after = [[[*prefix, *context] for context in contexts] for _, prefix in voices]
    for (reader, _), longer in zip(voices, after, strict=True):
        check_contexts(reader.config, longer, choices)
    flat = [one for some in choices for one in some]
    if not flat:
        return [[] for _ in choices]
    hidden = [  # of each voice [N, D]: what predicts each token of each continuation
        continuation_states(*reader, longer, choices, tokens_per_batch)
        for (reader, _), longer in zip(voices, after, strict=True)
    ]
    N, lengths = len(hidden[0]), [len(one) for one in flat]
    size = -(-N // _BLOCK) * _BLOCK
    target_N = np.pad(np.concatenate(flat).astype(np.int32), (0, size - N))
    hidden = tuple(np.pad(x_ND, ((0, size - N), (0, 0))) for x_ND in hidden)
    configs = tuple(reader.config for reader, _ in voices)
    weights = tuple(reader.params for reader, _ in voices)
    log_prob_N, greedy_N = jax.device_get(_scored(configs, step, weights, hidden, target_N, state))
    firsts = np.cumsum([0, *lengths[:-1]])
    log_probs = np.add.reduceat(log_prob_N[:N].astype(np.float64), firsts)
    greedy = np.logical_and.reduceat(greedy_N[:N], firsts)
    scored = (Choice(float(a), n, bool(b)) for a, n, b in zip(log_probs, lengths, greedy, strict=True))
    return [[next(scored) for _ in some] for some in choices]


@partial(jax.jit, static_argnums=(0, 1))
def _scored(configs, step, weights, hidden, target_N, state):
    """Return (log p~, whether none is likelier) of each target, [N] each."""

    def of_block(block):
        *hidden, target_n = block
        log_p_nV = jax.nn.log_softmax(models.logits(configs[0], weights[0], hidden[0]), axis=-1)
        log_q_MnV = jnp.concatenate([
            other_log_probs(config, params, h_nD, log_p_nV)
            for config, params, h_nD in zip(configs[1:], weights[1:], hidden[1:], strict=True)
        ])  # fmt: skip
        new_nV = step(log_p_nV, log_q_MnV, state)
        of_target_n = jnp.take_along_axis(new_nV, target_n[:, None], axis=1)[:, 0]
        return of_target_n, of_target_n >= jnp.max(new_nV, axis=1)

    blocks = tuple(x.reshape(-1, _BLOCK, *x.shape[1:]) for x in (*hidden, target_N))
    return jax.tree.map(jnp.ravel, jax.lax.map(of_block, blocks))
