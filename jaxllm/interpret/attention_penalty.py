"""Terms of a loss that keep attention heads from a habit: copying, or pointing at syntactic governors.

Aoyama and Wilcox 2025 (arXiv 2502.18802) train with them to see what the habit does to a model: add a weight
times the term to the loss. Each is a sum, not a mean, over the largest weight that any head of any layer
gives to each penalised pair, so its size grows with the batch and the context; the paper's weights, 1e-3 and
1e-2, are for 4 sequences of 1024 tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import models


class RepeatedSpans(NamedTuple):
    """Random tokens, a span of them again and again; the span's length is each row's own."""

    tokens_BT: jax.Array
    period_B: jax.Array


def draw_repeated_spans(
    key: jax.Array, batch: int, length: int, vocab_size: int, *, shortest: int, longest: int
) -> RepeatedSpans:
    """Return rows of uniform tokens, each tiled with a period drawn from shortest to longest.

    Examples:
      >>> tokens, period = draw_repeated_spans(jax.random.key(0), 4, 20, 50, shortest=3, longest=6)
      >>> all((row[p:] == row[:-p]).all() for row, p in zip(tokens, period.tolist()))
      True
    """
    of_tokens, of_periods = jax.random.split(key)
    period_B = jax.random.randint(of_periods, (batch,), shortest, longest + 1)
    drawn_BP = jax.random.randint(of_tokens, (batch, longest), 0, vocab_size)
    place_BT = jnp.arange(length, dtype=jnp.int32) % period_B[:, None]
    return RepeatedSpans(jnp.take_along_axis(drawn_BP, place_BT, axis=1), period_B)


def largest_attention(config: models.ModelConfig, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """Return the largest weight that any head of any layer gives to each pair of positions, [B, T, T].

    Differentiable: the gradient goes to the head that holds it. Keeps [L, B, T, T] until the backward pass.
    """
    sites = models.Sites(
        capture=("attn_probs",), keep=lambda captured, layer: {"largest": captured["attn_probs"].max(axis=1)}
    )
    return models.capture(config, params, tokens_BT, sites)[1]["largest"].max(axis=0)


def copying_penalty(config: models.ModelConfig, params: dict, spans: RepeatedSpans) -> jax.Array:
    """Return the attention from each token to those that followed its earlier occurrences, summed: float32.

    The sum over i and j <= i of a_max[i, j] where i + 1 - j is a multiple of the row's period.
    """
    attention_BTT = largest_attention(config, params, spans.tokens_BT)
    place_T = jnp.arange(attention_BTT.shape[1], dtype=jnp.int32)
    after_TT = place_T[:, None] + 1 - place_T
    copies_BTT = (after_TT > 0) & (after_TT % spans.period_B[:, None, None] == 0)
    return jnp.sum(attention_BTT, where=copies_BTT)


def syntactic_penalty(
    config: models.ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    word_of_BT: jax.Array,
    governor_of_BW: jax.Array,
) -> jax.Array:
    """Return the attention between each word and its syntactic governor, summed: float32.

    The later of the two attends to the earlier: the mean over the later one's tokens of the sum over the
    earlier one's. A word without a governor in its row is left out (the paper's code clamps it to the row's
    first word).

    Args:
      config: the model.
      params: its parameters, layers stacked.
      tokens_BT: int [B, T].
      word_of_BT: number of each token's word in its row, -1 for none.
      governor_of_BW: number of each word's governor, -1 for none.
    """
    attention_BTT = largest_attention(config, params, tokens_BT)
    W = governor_of_BW.shape[1]
    word_W = jnp.arange(W, dtype=jnp.int32)
    member_BTW = (word_of_BT[..., None] == word_W).astype(jnp.float32)
    mean_BTW = member_BTW / jnp.maximum(member_BTW.sum(axis=1, keepdims=True), 1)
    later_BW, earlier_BW = jnp.maximum(word_W, governor_of_BW), jnp.minimum(word_W, governor_of_BW)
    pick = jax.vmap(lambda member_TW, word_W: member_TW[:, word_W])
    of_pair_BW = jnp.einsum(
        "bsw,bst,btw->bw",
        pick(mean_BTW, later_BW),
        attention_BTT,
        pick(member_BTW, jnp.maximum(earlier_BW, 0)),
    )
    return jnp.sum(of_pair_BW, where=governor_of_BW >= 0)
