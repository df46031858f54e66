"""The slot part of the loss where each group has weights of its own.

The straightforward form gathers a group's [K, D] weights for every token, an array larger than the
logits that groups avoid (K D > V for a real vocabulary). Here tokens are sorted by group and cut in
blocks of one group each: a block reads its group's weights once, as one matrix product. Blocks are
padded, and a loop of a length known only at run time skips those that no token needs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import dot_general_float32, varying_like
from jaxllm_kernels.linear_cross_entropy.labels import weighted
from jaxllm_kernels.linear_cross_entropy.options import MASKED

_ROWS = (16, 256)  # of a block: fewest and most


class _Labels(NamedTuple):
    groups_N: jax.Array
    slots_N: jax.Array
    sizes_G: jax.Array
    token_weights_N: jax.Array  # float32; tokens of weight 0 cost nothing


class _Blocks(NamedTuple):
    tokens_PM: jax.Array  # which tokens; N where a row holds none
    groups_P: jax.Array
    count: jax.Array  # blocks in use, the first ones


def own_slots_loss(hidden_ND, slots_GKD, groups_N, slots_N, sizes_G, token_weights_N) -> jax.Array:
    """Return the weighted sum of -log softmax(hidden @ its group's weights)[slot], float32.

    Args:
      hidden_ND: [N, D].
      slots_GKD: [G, K, D].
      groups_N: int [N].
      slots_N: int [N], below the group's size.
      sizes_G: int [G], how many of a group's rows exist.
      token_weights_N: float32 [N]. No gradient.
    """
    labels = _Labels(*map(jnp.asarray, (groups_N, slots_N, sizes_G, token_weights_N)))
    # Alike on a mesh: what is replicated gets the sum of the devices' gradients.
    hidden_ND = varying_like(hidden_ND, slots_GKD, *labels)
    slots_GKD = varying_like(slots_GKD, hidden_ND, *labels)
    return _loss(hidden_ND, slots_GKD, labels)


@jax.custom_vjp
def _loss(hidden_ND, slots_GKD, labels: _Labels):
    return _forward(hidden_ND, slots_GKD, labels)[0]


def _forward(hidden_ND, slots_GKD, labels):
    blocks = _blocks(labels, slots_GKD.shape[0])

    def add(p, carry):
        total, lse_PM = carry
        block = _Block(hidden_ND, slots_GKD, labels, blocks, p)
        lse_M = jax.nn.logsumexp(block.logits_MK, axis=-1)
        total += jnp.sum(weighted(block.token_weights_M, lse_M - block.label_logits_M))
        return total, lse_PM.at[p].set(lse_M)

    start = jnp.zeros((), jnp.float32), jnp.zeros(blocks.tokens_PM.shape, jnp.float32)
    start = tuple(varying_like(x, hidden_ND) for x in start)
    total, lse_PM = jax.lax.fori_loop(0, blocks.count, add, start)
    return total, (hidden_ND, slots_GKD, labels, blocks, lse_PM)


def _backward(saved, d_total):
    hidden_ND, slots_GKD, labels, blocks, lse_PM = saved

    def add(p, carry):
        d_hidden_ND, d_slots_GKD = carry
        block = _Block(hidden_ND, slots_GKD, labels, blocks, p)
        columns_K = jnp.arange(slots_GKD.shape[1], dtype=jnp.int32)
        error_MK = jnp.exp(block.logits_MK - lse_PM[p][:, None])
        error_MK -= columns_K == block.labels_M[:, None]
        error_MK = (error_MK * (d_total * block.token_weights_M)[:, None]).astype(hidden_ND.dtype)
        d_hidden_MD = dot_general_float32(error_MK, block.weights_KD, (((1,), (0,)), ((), ())))
        d_weights_KD = dot_general_float32(error_MK, block.hidden_MD, (((0,), (0,)), ((), ())))
        d_hidden_ND = d_hidden_ND.at[block.tokens_M].set(d_hidden_MD.astype(d_hidden_ND.dtype), mode="drop")
        return d_hidden_ND, d_slots_GKD.at[blocks.groups_P[p]].add(d_weights_KD)

    start = jnp.zeros_like(hidden_ND), jnp.zeros(slots_GKD.shape, jnp.float32)
    start = tuple(varying_like(x, hidden_ND) for x in start)
    d_hidden_ND, d_slots_GKD = jax.lax.fori_loop(0, blocks.count, add, start)
    return d_hidden_ND, d_slots_GKD.astype(slots_GKD.dtype), None


_loss.defvjp(_forward, _backward)


class _Block:
    """Up to M tokens of one group: their hidden states, labels and logits."""

    def __init__(self, hidden_ND, slots_GKD, labels: _Labels, blocks: _Blocks, p):
        group = blocks.groups_P[p]
        self.tokens_M = blocks.tokens_PM[p]
        self.hidden_MD = hidden_ND.at[self.tokens_M].get(mode="fill", fill_value=0)
        self.weights_KD = slots_GKD[group].astype(hidden_ND.dtype)
        self.labels_M = labels.slots_N.at[self.tokens_M].get(mode="fill", fill_value=0)
        self.token_weights_M = labels.token_weights_N.at[self.tokens_M].get(mode="fill", fill_value=0)
        logits_MK = dot_general_float32(self.hidden_MD, self.weights_KD, (((1,), (1,)), ((), ())))
        exists_K = jnp.arange(slots_GKD.shape[1], dtype=jnp.int32) < labels.sizes_G[group]
        self.logits_MK = jnp.where(exists_K, logits_MK, MASKED)

    @property
    def label_logits_M(self):
        return jnp.take_along_axis(self.logits_MK, self.labels_M[:, None], axis=1)[:, 0]


def _blocks(labels: _Labels, G: int) -> _Blocks:
    """Sort the tokens that count by group and cut them in blocks."""
    N = len(labels.groups_N)
    M = min(max(1 << (N // G).bit_length(), _ROWS[0]), _ROWS[1])
    P = N // M + G  # at most: each group fills its last block only in part
    groups_N = jnp.where(labels.token_weights_N != 0, labels.groups_N, G)  # the others come last
    sorted_N = jnp.argsort(groups_N)
    counts_G = varying_like(jnp.zeros(G, jnp.int32), groups_N).at[groups_N].add(1, mode="drop")
    last_G = jnp.cumsum(counts_G)  # of a group's tokens, and of its blocks: one past it
    blocks_G = -(-counts_G // M)
    last_block_G = jnp.cumsum(blocks_G)

    blocks_P = jnp.arange(P, dtype=jnp.int32)
    # Not searchsorted: inside shard_map jax 0.7 wants both of its arguments to vary alike.
    groups_P = jnp.minimum(jnp.sum(last_block_G <= blocks_P[:, None], axis=1), G - 1)
    first_P = (last_G - counts_G)[groups_P] + M * (blocks_P - (last_block_G - blocks_G)[groups_P])
    places_PM = first_P[:, None] + jnp.arange(M, dtype=jnp.int32)
    exists_PM = places_PM < last_G[groups_P][:, None]
    tokens_PM = jnp.where(exists_PM, sorted_N[jnp.minimum(places_PM, N - 1)], N)
    return _Blocks(tokens_PM, groups_P, last_block_G[-1])
