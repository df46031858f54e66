"""Prompts that several rows continue: their keys and values are held once and read once a step.

The queries of all rows that continue a prompt are attended together, as if they were more tokens of one row.
What they found there and among the tokens of their own is merged by the logsumexp of the scores, as blocks
of keys are in FlashAttention (arXiv 2205.14135).

Suffixes here: P prompts, and R rows that continue a prompt at most.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxllm_kernels import attention as kernel


class Prefix(NamedTuple):
    """A cache of P rows that B rows continue. In a layer key and value are that layer's [P, G, S, K]."""

    key: jax.Array  # as in the cache
    value: jax.Array
    valid_PS: jax.Array
    grid_PR: jax.Array  # int32: the rows that continue a prompt; row 0 where there are fewer than R
    place_B: jax.Array  # int32: each row's place in the grid, flattened

    def seen_B(self) -> jax.Array:
        """Return how many tokens of the prompt each row has behind it."""
        return jnp.sum(self.valid_PS, axis=1, dtype=jnp.int32)[self.parent_B()]

    def parent_B(self) -> jax.Array:
        """Return which prompt each row continues."""
        return self.place_B // self.grid_PR.shape[1]

    def layer(self, index) -> "Prefix":
        """Return one layer's, of a stack of them or a tuple."""
        if isinstance(self.key, tuple):
            return self._replace(key=self.key[index], value=self.value[index])
        one = (jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in (self.key, self.value))
        return self._replace(**dict(zip(("key", "value"), one, strict=True)))

    def selected(self, rows_B) -> "Prefix":
        """Return what `continued` does; of prompts that one row each continues, without the others."""
        if self.grid_PR.shape[1] > 1:
            return self.continued(rows_B)
        index_P = self.place_B[jnp.asarray(rows_B)]
        key, value = jax.tree.map(lambda x: jnp.take(x, index_P, axis=x.ndim - 4), (self.key, self.value))
        valid_PS = jnp.take(self.valid_PS, index_P, axis=0)
        return self.of(key, value, valid_PS, np.arange(len(index_P)))

    def continued(self, rows_B) -> "Prefix":
        """Return the same prompts, continued by other rows: those that continued the rows given."""
        parent_B = np.asarray(self.place_B)[np.asarray(rows_B)] // self.grid_PR.shape[1]
        return self.of(self.key, self.value, self.valid_PS, parent_B)

    @classmethod
    def of(cls, key, value, valid_PS, parent_B: np.ndarray) -> "Prefix":
        """Return a prefix that rows continue, each the prompt that it names."""
        parent_B = np.asarray(parent_B, np.int32)
        P = len(valid_PS)
        counts_P = np.bincount(parent_B, minlength=P)
        R = int(counts_P.max())
        if R * P != len(parent_B):  # of few sizes, so that few programs are compiled
            R = 1 << (R - 1).bit_length()
        grid_PR = np.zeros((P, R), np.int32)
        place_B = np.zeros(len(parent_B), np.int32)
        for prompt in range(P):
            rows = np.flatnonzero(parent_B == prompt)
            grid_PR[prompt, : len(rows)] = rows
            place_B[rows] = prompt * R + np.arange(len(rows))
        return cls(key, value, valid_PS, jnp.asarray(grid_PR), jnp.asarray(place_B))

    def attend(self, query_BTHK: jax.Array, since_BT: jax.Array | None, window: int, **options):
        """Return what each row's queries find in its prompt: (output [B, T, H, K], logsumexp [B, H, T]).

        Args:
          query_BTHK: queries of the rows' new tokens.
          since_BT: how many tokens there are since the prompt's end, the query's included; None: no window.
          window: how many positions back a query sees, itself included; 0: all.
          **options: those of the attention kernel.
        """
        (_, T, H, K), (P, R) = query_BTHK.shape, self.grid_PR.shape
        query_PNHK = query_BTHK[self.grid_PR].reshape(P, R * T, H, K)
        mask_PNS = self.valid_PS[:, None]
        if window:
            count_PS = jnp.cumsum(self.valid_PS, axis=1, dtype=jnp.int32)
            to_end_P1S = (count_PS[:, -1:] - count_PS)[:, None]
            since_PN1 = since_BT[self.grid_PR].reshape(P, R * T, 1)
            mask_PNS = mask_PNS & (since_PN1 + to_end_P1S < window)
        key_PSGK, value_PSGK = self.key.swapaxes(1, 2), self.value.swapaxes(1, 2)
        out_PNHK, lse_PHN = kernel.attention_with_lse(
            query_PNHK, key_PSGK, value_PSGK, mask_BTS=mask_PNS, **options
        )
        out_BTHK = out_PNHK.reshape(P * R, T, H, K)[self.place_B]
        lse_BHT = lse_PHN.reshape(P, H, R, T).swapaxes(1, 2).reshape(P * R, H, T)[self.place_B]
        return out_BTHK, lse_BHT


def merge(parts, sink_H: jax.Array | None) -> jax.Array:
    """Return attention over all keys from that over parts of them: [B, T, H, K].

    Args:
      parts: (output [B, T, H, K], logsumexp [B, H, T]) of each, both without the sink.
      sink_H: one more logit, whose value is zero, or None.
    """
    lse_NBHT = jnp.stack([lse_BHT for _, lse_BHT in parts])
    top_BHT = jnp.max(lse_NBHT, axis=0)
    if sink_H is not None:
        top_BHT = jnp.maximum(top_BHT, sink_H.astype(top_BHT.dtype)[None, :, None])
    top_BHT = jnp.where(jnp.isfinite(top_BHT), top_BHT, 0.0)
    weight_NBHT = jnp.exp(lse_NBHT - top_BHT[None])
    total_BHT = jnp.sum(weight_NBHT, axis=0)
    if sink_H is not None:
        total_BHT = total_BHT + jnp.exp(sink_H.astype(top_BHT.dtype)[None, :, None] - top_BHT)
    share_NBHT = weight_NBHT / jnp.where(total_BHT == 0.0, 1.0, total_BHT)[None]
    share_NBTH1 = share_NBHT.swapaxes(2, 3)[..., None]
    out_BTHK = sum(out * share for (out, _), share in zip(parts, share_NBTH1, strict=True))
    return out_BTHK.astype(parts[0][0].dtype)
