"""The compiled program that draws a few tokens a row."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import models


class Carried(NamedTuple):
    """What passes from one drawn token to the next."""

    cache: Any  # None: every token is drawn from the last window, read anew
    hidden_BD: jax.Array  # of each row's last token
    tokens_BS: jax.Array  # padding, the prompt, what was drawn, free slots
    seen_BS: jax.Array  # which slots hold a token
    length: jax.Array  # slots written
    done_B: jax.Array  # rows that have ended, which repeat their last token
    row_B: jax.Array  # a number that a row keeps when others drop out: its draws depend on no other row

    def select(self, rows) -> "Carried":
        """Return what some of the rows carry."""
        one = {
            name: value[rows] for name, value in self._asdict().items() if name not in ("cache", "length")
        }
        cache = None if self.cache is None else models.select_rows(self.cache, rows)
        return self._replace(cache=cache, **one)


class Drawn(NamedTuple):
    """Tokens, and their log-probabilities in nats; of a row that has ended, its last token and 0."""

    tokens: Any  # int32 [B, n]
    log_probs: Any  # float32 [B, n]: under the model
    sampled_log_probs: Any  # float32 [B, n]: under what they were drawn from, processed


@partial(
    jax.jit,
    static_argnames=("config", "count", "sampling", "updates", "ends"),
    donate_argnames="carried",
)
def draw(config, params, carried: Carried, states, weights, key, *, count, sampling, updates, ends):
    """Draw `count` tokens a row; return (carried, the processors' states, Drawn [B, count]).

    Args:
      carried: donated.
      states, weights: of each processor.
      updates: of each processor, (logits, tokens, seen, weights, state) -> (logits, state).
    """
    plain = sampling.processors()
    by_group = draws_by_group(config, sampling, updates)

    def one(carry, key):
        (cache, hidden_BD, tokens_BS, seen_BS, length, done_B, row_B), states = carry
        if by_group:  # the same distribution, without a logit for every token
            drawn_B, log_probs_B = models.draw_token(config, params, hidden_BD, key)
            sampled_B = log_probs_B
        else:
            logits_BV = scores_BV = models.logits(config, params, hidden_BD)
            after = []
            for update, fixed, state in zip(updates, weights, states, strict=True):
                scores_BV, state = update(scores_BV, tokens_BS, seen_BS, fixed, state)
                after.append(state)
            states = tuple(after)
            for process in plain:
                scores_BV = process(scores_BV, tokens_BS, seen_BS)
            if sampling.temperature == 0:
                drawn_B = jnp.argmax(scores_BV, axis=-1)
            else:
                key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)
                drawn_B = jax.vmap(jax.random.categorical)(key_B, scores_BV)
            log_probs_B = sampled_B = _log_prob(logits_BV, drawn_B)
            if sampling.temperature == 0:
                sampled_B = jnp.zeros_like(log_probs_B)  # no other token could have been drawn
            elif scores_BV is not logits_BV:
                sampled_B = _log_prob(scores_BV, drawn_B)
        last_B1 = jax.lax.dynamic_slice_in_dim(tokens_BS, length - 1, 1, axis=1)
        drawn_B1 = jnp.where(done_B[:, None], last_B1, drawn_B.astype(jnp.int32)[:, None])
        log_probs_B, sampled_B = (jnp.where(done_B, 0.0, x) for x in (log_probs_B, sampled_B))
        drawn = Drawn(drawn_B1[:, 0], log_probs_B, sampled_B)
        done_B = done_B | jnp.isin(drawn.tokens, jnp.array(ends, jnp.int32))
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(tokens_BS, drawn_B1, length, axis=1)
        seen_BS = jax.lax.dynamic_update_slice_in_dim(
            seen_BS, jnp.ones_like(drawn_B1, bool), length, axis=1
        )
        if cache is None:
            hidden_BD = _read_window(config, params, tokens_BS, seen_BS, length + 1)
        else:
            hidden_B1D, cache = models.decode(config, params, drawn_B1, cache)
            hidden_BD = hidden_B1D[:, 0]
        carried = Carried(cache, hidden_BD, tokens_BS, seen_BS, length + 1, done_B, row_B)
        return (carried, states), drawn

    (carried, states), drawn = jax.lax.scan(one, (carried, states), jax.random.split(key, count))
    return carried, states, jax.tree.map(jnp.transpose, drawn)


def draws_by_group(config, sampling, updates) -> bool:
    """Return whether the head's groups are drawn first, then tokens in them."""
    changed = updates or sampling.processors() or sampling.temperature != 1
    return config.vocab_groups is not None and not changed


def _log_prob(logits_BV, token_B):
    of_token_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return of_token_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _read_window(config, params, tokens_BS, seen_BS, length):
    """Return the last token's hidden state [B, D] after the last `context_length` tokens alone."""
    W = min(config.context_length, tokens_BS.shape[1])
    # Free slots come around to the left, where padding is allowed.
    tokens_BW, seen_BW = (jnp.roll(x, -length, axis=1)[:, -W:] for x in (tokens_BS, seen_BS))
    return models.prefill(config, params, tokens_BW, seen_BW, slots=W)[0]
