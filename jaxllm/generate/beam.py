"""Beam search over any processors: caches and states are reordered together."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.generate.decoder import Decoder
from jaxllm.generate.processors import Processor, StatefulProcessor, with_state
from jaxllm.generate.prompts import Prompts, check_prompts


class Beam(NamedTuple):
    """One continuation of a prompt."""

    tokens: list[int]  # without the prompt, up to and without the token that ended it
    log_prob: float  # nats, of these tokens and of the one that ended them, under the processed distribution


def beam_search(
    config: models.LanguageModel,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    processors: Sequence[Processor | StatefulProcessor] = (),
    eos_id: int | Sequence[int] | None = None,
) -> list[list[Beam]]:
    """Return the likeliest continuations that a beam finds, the best first: `beams` lists a prompt.

    Scores are sums of log-probabilities, not divided by lengths. A beam that has ended stays as it is.
    One beam is greedy decoding. Prompt and continuation must fit the model's context.

    Args:
      config: the model.
      params: its parameters; `*decoder` saves laying them out.
      prompts: token ids, at least one each.
      beams: how many are kept.
      max_new_tokens: how many to draw at most.
      processors: as of `generate`; each must be able to select rows. Pass the same functions each time.
      eos_id: each of these ids ends a beam.

    Raises:
      UserError: what `generate` refuses; a processor that cannot select rows; more tokens than the context.

    Examples:
      >>> config = models.get_preset("gpt2-nano", vocab_size=256)
      >>> params = models.init(config, jax.random.key(0))
      >>> [[best, second]] = beam_search(config, params, [[1, 2, 3]], beams=2, max_new_tokens=4)
      >>> len(best.tokens), best.log_prob > second.log_prob
      (4, True)
    """
    check_prompts(config, prompts)
    for name, count in (("max_new_tokens", max_new_tokens), ("beams", beams)):
        if count < 1:
            raise UserError(f"{name} is {count}; it must be at least 1")
    if beams > config.known_vocab_size:
        raise UserError(f"beams is {beams}; a vocabulary of {config.known_vocab_size} has no more tokens")
    longest = max(map(len, prompts)) + max_new_tokens
    if longest > config.most_cached:
        raise UserError(
            f"a prompt and {max_new_tokens} new tokens are {longest}, and the model's context holds "
            f"{config.most_cached}; shorten the prompt or max_new_tokens"
        )
    processors = tuple(with_state(processor) for processor in processors)
    if any(processor.select is None for processor in processors):
        raise UserError("a processor has no `select`, and beams reorder rows; give it one")
    decoder = Decoder(config, params)
    packed = Prompts.pack(prompts, config.most_cached, max_new_tokens, max_new_tokens, config.start_id)
    # One row of the cache a prompt, copied for each beam: beams change places at every token.
    packed = packed._replace(
        tokens_PT=packed.tokens_PT[packed.rows_B],
        mask_PT=packed.mask_PT[packed.rows_B],
        rows_B=np.arange(len(prompts)),
    )
    states = tuple(processor.init(packed) for processor in processors)
    hidden_BD, cache = packed.read(decoder)
    free = ((0, 0), (0, max_new_tokens))
    tokens_BS, seen_BS = (np.pad(x_BT, free) for x_BT in packed.begun())
    ends = () if eos_id is None else tuple(np.atleast_1d(eos_id).tolist())
    drawn_BKN, log_prob_BK = jax.device_get(_search(
        *decoder, hidden_BD, cache, tokens_BS, seen_BS, states, tuple(p.weights for p in processors),
        updates=tuple(p.update for p in processors), selects=tuple(p.select for p in processors),
        beams=beams, count=max_new_tokens, ends=ends,
    ))  # fmt: skip

    def until_end(row):
        return row[: next((n for n, token in enumerate(row) if token in ends), len(row))]

    return [
        [Beam(until_end(row), float(score)) for row, score in zip(rows.tolist(), scores, strict=True)]
        for rows, scores in zip(drawn_BKN, log_prob_BK, strict=True)
    ]


@partial(jax.jit, static_argnames=("config", "updates", "selects", "beams", "count", "ends"))
def _search(
    config, params, hidden_BD, cache, tokens_BS, seen_BS, states, weights,
    *, updates, selects, beams, count, ends,
):  # fmt: skip
    """Return (tokens [B, K, count], log-probabilities [B, K]), the best first. Rows N are B x K."""
    B, K, prompt = len(hidden_BD), beams, tokens_BS.shape[1] - count
    every_N = jnp.repeat(jnp.arange(B, dtype=jnp.int32), K)
    start_N1 = (jnp.arange(B, dtype=jnp.int32) * K)[:, None]
    ends = jnp.array(ends, jnp.int32)

    def rows(carry, at_N):
        hidden, cache, tokens, seen, done, states = carry
        states = tuple(select(state, at_N) for select, state in zip(selects, states, strict=True))
        return hidden[at_N], models.select_rows(cache, at_N), tokens[at_N], seen[at_N], done[at_N], states

    def one(carry, number):
        (hidden_ND, cache, tokens_NS, seen_NS, done_N, states), total_BK = carry
        scores_NV, after = models.logits(config, params, hidden_ND), []
        for update, fixed, state in zip(updates, weights, states, strict=True):
            scores_NV, state = update(scores_NV, tokens_NS, seen_NS, fixed, state)
            after.append(state)
        log_p_NV = jax.nn.log_softmax(scores_NV, axis=-1)
        V = log_p_NV.shape[1]
        # What has ended repeats its last token, at no cost.
        last_N = jax.lax.dynamic_index_in_dim(tokens_NS, prompt + number - 1, axis=1, keepdims=False)
        stays_NV = jnp.where(jnp.arange(V, dtype=jnp.int32) == last_N[:, None], 0.0, -jnp.inf)
        log_p_NV = jnp.where(done_N[:, None], stays_NV, log_p_NV)
        best_BK, which_BK = jax.lax.top_k(
            (total_BK[:, :, None] + log_p_NV.reshape(B, K, V)).reshape(B, -1), K
        )
        parent_N, token_N = (which_BK // V + start_N1).ravel(), (which_BK % V).ravel().astype(jnp.int32)
        carry = hidden_ND, cache, tokens_NS, seen_NS, done_N, tuple(after)
        _, cache, tokens_NS, seen_NS, done_N, states = rows(carry, parent_N)
        at = (jnp.int32(0), prompt + number)
        tokens_NS = jax.lax.dynamic_update_slice(tokens_NS, token_N[:, None], at)
        seen_NS = jax.lax.dynamic_update_slice(seen_NS, jnp.ones_like(token_N, bool)[:, None], at)
        hidden_N1D, cache = models.decode(config, params, token_N[:, None], cache)
        done_N = done_N | jnp.isin(token_N, ends)
        return ((hidden_N1D[:, 0], cache, tokens_NS, seen_NS, done_N, states), best_BK), None

    first = hidden_BD, cache, jnp.asarray(tokens_BS), jnp.asarray(seen_BS), jnp.zeros(B, bool), states
    # At first all beams of a prompt are the same: only one of them counts.
    total_BK = jnp.where(jnp.arange(K, dtype=jnp.int32) == 0, 0.0, -jnp.inf) * jnp.ones((B, 1), jnp.float32)
    carry = rows(first, every_N), total_BK
    carry, _ = jax.lax.scan(one, carry, jnp.arange(count, dtype=jnp.int32))
    (_, _, tokens_NS, _, _, _), total_BK = carry
    return tokens_NS[:, prompt:].reshape(B, K, count), total_BK
