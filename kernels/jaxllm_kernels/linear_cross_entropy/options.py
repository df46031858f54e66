"""The arithmetic of the loss around its matmuls, shared by all implementations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # a logit that does not exist: finite, so that a row of them gives no NaN


class Sizes(NamedTuple):
    """How the XLA form cuts its work."""

    logits_bytes: int  # of one chunk's float32 logits on one device
    block: int | None  # vocabulary columns at a time; None: all


# On a CPU a block of logits stays in the cache and big matmuls run at the speed of small ones.
CPU_SIZES = Sizes(logits_bytes=200 * 2**20, block=2048)
# 256 MiB is about 1,300 tokens of GPT-2's vocabulary: enough rows for the matmul to be bound by
# arithmetic, not by reading the head. A whole row at a time keeps a sharded vocabulary sharded.
DEVICE_SIZES = Sizes(logits_bytes=256 * 2**20, block=None)


class Options(NamedTuple):
    """What is computed; static, hashable."""

    vocab_axis: int = 1
    z_loss: float = 0.0
    vocab_axis_name: str | tuple[str, ...] | None = None

    def local(self, labels, limits, weights):
        """Return labels and limits counted from this shard's first column of the vocabulary."""
        if self.vocab_axis_name is None:
            return labels, limits
        offset = jax.lax.axis_index(self.vocab_axis_name) * weights.shape[self.vocab_axis]
        return labels - offset, None if limits is None else limits - offset

    def shards(self) -> int:
        """Return over how many devices the vocabulary is spread."""
        return 1 if self.vocab_axis_name is None else jax.lax.psum(1, self.vocab_axis_name)

    def combine(self, lse):
        """Return the logsumexp over all shards of the vocabulary from each shard's own."""
        if self.vocab_axis_name is None:
            return lse
        top = jax.lax.pmax(jax.lax.stop_gradient(lse), self.vocab_axis_name)
        return top + jnp.log(jax.lax.psum(jnp.exp(lse - top), self.vocab_axis_name))

    def losses(self, lse, label):
        """Return (-log probability of the label, z-loss) of each token.

        With the vocabulary in shards: this shard's share, since its label's logit is.
        """
        lse_share = lse / self.shards()
        return lse_share - label, self.z_loss * lse * lse_share

    def slopes(self, lse, weight):
        """Return the loss's derivatives for (logsumexp, label's logit) of each token."""
        by_lse = weight * (1.0 + 2.0 * self.z_loss * lse) if self.z_loss else weight
        return by_lse, -weight

    def d_logits(self, logits, is_label, lse, slopes):
        """Return the loss's derivative for the logits."""
        by_lse, by_label = slopes
        return by_lse * jnp.exp(logits - lse) + jnp.where(is_label, by_label, 0.0)
