"""How much attention goes to a text's first token: the attention sink.

Xiao et al. 2023 (arXiv 2309.17453) named it; Kaul et al. 2024 (arXiv 2410.17174) measure it as done here.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxllm_kernels import attention as kernel

QUERIES = 128  # whose scores are in memory at a time


class FirstTokenAttention(NamedTuple):
    """What each query gives to the first token of its document; 0 where it does not count."""

    argmax_BTH: jax.Array  # 1 where its weight is the largest; 1/n if n keys tie for that; else 0
    mass_BTH: jax.Array  # its weight
    counts_BT: jax.Array  # bool: the query sees the first token and another


def first_token_attention(
    query_BTHK: jax.Array,
    key_BTGK: jax.Array,
    *,
    scale: float | None = None,
    window: jax.Array | int = 0,
    sink: float | jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> FirstTokenAttention:
    """Return the share of the first token in causal attention, without keeping the weights.

    A document's first query sees no other key and does not count, nor does one whose window hides the
    first token. A tie for the largest weight is split evenly, so that uniform attention has an argmax
    share equal to its mass. Memory grows as B * H * T, for a block of queries at a time.

    Args:
      query_BTHK: [B, T, H, K], as attention takes them (site "query").
      key_BTGK: [B, T, G, K]; G divides H (site "key").
      scale: None is 1 / sqrt(K).
      window: keys a query sees, itself included; 0: all before it. May be traced.
      sink: see `jaxllm_kernels.attention.attention`; it takes mass, but is no key that could be largest.
      segment_ids_BT: int [B, T], one number a document; None: each row is one document.

    Examples:
      >>> query, key = jnp.zeros((1, 3, 1, 4)), jnp.zeros((1, 3, 1, 4))
      >>> first_token_attention(query, key).mass_BTH[0, :, 0]  # of the queries that see 1, 2, 3 keys
      Array([0.        , 0.5       , 0.3333...], dtype=float32)
    """
    B, T, H, K = query_BTHK.shape
    scale = K**-0.5 if scale is None else scale
    sink_H = kernel.sink_logits(sink, H)
    if segment_ids_BT is None:
        segment_ids_BT = jnp.zeros((B, T), jnp.int32)
    starts_BS = jnp.pad(
        segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )

    def of_query(query_and_place):
        query_BHK, position, segment_B = query_and_place
        distance_S = position - jnp.arange(T, dtype=jnp.int32)
        seen_S = (distance_S >= 0) & ((distance_S < window) | (window == 0))
        seen_BS = seen_S[None] & (segment_B[:, None] == segment_ids_BT)
        first_BS = seen_BS & starts_BS
        counts_B = jnp.any(first_BS, axis=1) & jnp.any(seen_BS & ~starts_BS, axis=1)

        scores_BH1S = kernel.attention_scores(query_BHK[:, None], key_BTGK, scale)
        scores_BH1S = jnp.where(seen_BS[:, None, None], scores_BH1S, -jnp.inf)
        first_BH1S = (first_BS & counts_B[:, None])[:, None, None]
        largest_BH1S = scores_BH1S == jnp.max(scores_BH1S, axis=-1, keepdims=True)
        count = functools.partial(jnp.sum, axis=-1, dtype=jnp.float32)
        argmax_BH1 = count(largest_BH1S & first_BH1S) / count(largest_BH1S)
        probs_BH1S = kernel.attention_probs(scores_BH1S, None, sink_H)
        mass_BH1 = jnp.sum(probs_BH1S, axis=-1, where=first_BH1S)
        return argmax_BH1[..., 0], mass_BH1[..., 0], counts_B

    by_query = (query_BTHK.swapaxes(0, 1), jnp.arange(T, dtype=jnp.int32), segment_ids_BT.T)
    values = jax.lax.map(of_query, by_query, batch_size=min(QUERIES, T))
    return FirstTokenAttention(*(value.swapaxes(0, 1) for value in values))


def first_token_of_weights(
    probs_BHTS: jax.Array, window: jax.Array | int, segment_ids_BT: jax.Array | None
) -> FirstTokenAttention:
    """Return what `first_token_attention` does, from the weights: of any attention, an encoder's too.

    There too a document's first query, which sees itself and what follows, does not count.

    Args:
      probs_BHTS: the weights (site "attn_probs").
      window: see `first_token_attention`.
      segment_ids_BT: see `first_token_attention`.
    """
    B, _, T, _ = probs_BHTS.shape
    index_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    start_BT = jnp.zeros_like(index_BT)
    if segment_ids_BT is not None:
        starts_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
        start_BT = jax.lax.cummax(jnp.where(starts_BT, index_BT, 0), axis=1)
    behind_BT = index_BT - start_BT
    counts_BT = (behind_BT > 0) & ((behind_BT < window) | (window == 0))
    first_BHT = jnp.take_along_axis(probs_BHTS, start_BT[:, None, :, None], axis=-1)[..., 0]
    first_BTH = jnp.where(counts_BT[..., None], first_BHT.swapaxes(1, 2), 0)
    largest_BHT = jnp.max(probs_BHTS, axis=-1)
    ties_BHT = jnp.sum(probs_BHTS == largest_BHT[..., None], axis=-1, dtype=jnp.float32)
    is_largest_BTH = (first_BHT == largest_BHT).swapaxes(1, 2) & counts_BT[..., None]
    return FirstTokenAttention(is_largest_BTH / ties_BHT.swapaxes(1, 2), first_BTH, counts_BT)


def uniform_first_token_mass(seq_len: int, *, softmax_1: bool = False) -> float:
    """Return the mean mass on the first token if attention were uniform: the floor to compare with.

    The first query, which does not count, is left out: the mean of 1/2, 1/3 ... 1/seq_len, or with
    softmax-1, whose sink weighs as much as a key, of 1/3, 1/4 ... 1/(seq_len + 1).

    Examples:
      >>> uniform_first_token_mass(3)
      0.4166...
    """
    keys = range(2 + softmax_1, seq_len + 1 + softmax_1)
    return sum(1 / n for n in keys) / (seq_len - 1)
