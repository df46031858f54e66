"""Continuations that a model draws, with what a policy gradient needs of them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate import Decoder, stream


class Rollouts(NamedTuple):
    """Drawn sequences, padded on the right with 0. U is the longest prompt and `max_new_tokens`."""

    tokens_BU: np.ndarray  # int32: the prompt, what was drawn, the token that ended it
    mask_BT: np.ndarray  # float32 [B, U - 1]: 1 where the next token was drawn, the end token too
    log_probs_BT: np.ndarray  # float32 [B, U - 1]: of those, under what they were drawn from; 0 elsewhere
    ended_B: np.ndarray  # bool: whether it ended by itself

    def drawn(self) -> list[list[int]]:
        """Return what was drawn of each, without the token that ended it."""
        found = []
        for tokens_U, mask_T, ended in zip(self.tokens_BU, self.mask_BT, self.ended_B, strict=True):
            ids = tokens_U[1:][mask_T > 0].tolist()
            found.append(ids[:-1] if ended else ids)
        return found


def draw_rollouts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    key: jax.Array,
    longest_prompt: int | None = None,
) -> Rollouts:
    """Continue prompts by the model's own distribution: temperature 1, nothing truncated, no least length.

    So the log-probabilities are those of the distribution that was drawn from, and the KL divergence to a
    reference that they estimate cannot be made negative by the sampler.

    Args:
      decoder: the policy.
      prompts: token ids; one that is there many times is read once.
      max_new_tokens: most tokens drawn of each, the end token included.
      end_id: the token that ends a sequence.
      key: typed random key.
      longest_prompt: pad as if the longest prompt had so many tokens, so that all draws have one shape.

    Raises:
      UserError: prompts and what is drawn do not fit the model's context, or see `generate.stream`.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> decoder = Decoder(config, models.init(config, jax.random.key(0)))
      >>> drawn = draw_rollouts(decoder, [[1, 2], [3]], max_new_tokens=4, end_id=0, key=jax.random.key(1))
      >>> drawn.tokens_BU.shape, drawn.mask_BT.sum(axis=1).tolist()
      ((2, 6), [4.0, 4.0])
    """
    longest = max([longest_prompt or 1, *map(len, prompts)])
    most = decoder.config.context_length
    if longest + max_new_tokens > most:
        raise UserError(
            f"prompts of up to {longest} tokens and max_new_tokens={max_new_tokens} exceed the model's "
            f"context of {most}; a window that moves would change the distribution: draw fewer"
        )
    pieces = list(stream(*decoder, prompts, max_new_tokens=max_new_tokens, eos_id=end_id, key=key))
    drawn_BN = np.concatenate([piece.tokens for piece in pieces], axis=1)
    sampled_BN = np.concatenate([piece.sampled_log_probs for piece in pieces], axis=1)
    is_end_BN = drawn_BN == end_id
    before_BN = np.cumsum(is_end_BN, axis=1) - is_end_BN  # end tokens before each: 0 up to the first one
    B, U = len(prompts), longest + max_new_tokens
    tokens_BU, mask_BT = np.zeros((B, U), np.int32), np.zeros((B, U - 1), np.float32)
    log_probs_BT = np.zeros_like(mask_BT)
    for row, prompt in enumerate(prompts):
        count, at = int((before_BN[row] == 0).sum()), len(prompt)
        tokens_BU[row, :at] = prompt
        tokens_BU[row, at : at + count] = drawn_BN[row, :count]
        mask_BT[row, at - 1 : at - 1 + count] = 1
        log_probs_BT[row, at - 1 : at - 1 + count] = sampled_BN[row, :count]
    return Rollouts(tokens_BU, mask_BT, log_probs_BT, is_end_BN.any(axis=1))


def policy_log_probs(config: models.LanguageModel, params, tokens_BU: jax.Array) -> jax.Array:
    """Return log p(next token) at each position, float32 [B, U - 1]; differentiable, no full logits."""
    # What pads the right of a row comes after its tokens, which therefore do not see it.
    hidden_BTD = models.trunk(config, params, tokens_BU[:, :-1])
    return models.token_log_probs(config, params, hidden_BTD, tokens_BU[:, 1:])


@partial(jax.jit, static_argnums=0)
def jitted_log_probs(config: models.LanguageModel, params, tokens_BU: jax.Array) -> jax.Array:
    """Return what `policy_log_probs` does, by a compiled program."""
    return policy_log_probs(config, params, tokens_BU)
