"""Disentangled attention (DeBERTa, arXiv 2006.03654): scores of content and of relative positions, added."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import Config, CountOrZero, Size
from jaxllm.errors import UserError
from jaxllm.models.architecture import Declaration
from jaxllm.models.linear import linear

TERMS = ("c2p", "p2c")


@dataclass(frozen=True)
class Disentangled(Config):
    """Which relative positions there are, and which scores they add.

    Distances up to half of `buckets` have a vector each, those beyond share them, fewer and fewer, up to
    `distance`.

    Raises:
      UserError: a value that its field may not hold, or an odd number of buckets.
    """

    buckets: CountOrZero = 256  # on each side; 0: a vector for each distance
    distance: Size = 512  # the largest that is told from those beyond
    terms: tuple[Literal[TERMS], ...] = TERMS  # content to position, position to content
    shared: bool = True  # positions are projected by the matrices of queries and keys, not their own
    norm: bool = True  # of the vectors

    _prefix = "disentangled."

    def __post_init__(self):
        super().__post_init__()
        if self.buckets % 2:
            raise UserError(f"disentangled.buckets is {self.buckets}; it must be even: half of them are near")
        if 0 < self.buckets and self.distance <= self.buckets // 2 + 1:
            raise UserError(
                f"disentangled.distance is {self.distance}; it must be above half of disentangled.buckets="
                f"{self.buckets}, which are near, by two at least"
            )

    @property
    def span(self) -> int:
        """Return how many vectors there are on each side."""
        return self.buckets or self.distance


def relative_rows(positions: Disentangled, T: int) -> np.ndarray:
    """Return the row of the table for each distance from T - 1 (a key far before) to 1 - T: int [2T - 1].

    Examples:
      >>> relative_rows(Disentangled(buckets=4, distance=16), 6).tolist()
      [7, 7, 7, 6, 5, 4, 3, 2, 1, 1, 1]
    """
    distance = np.arange(T - 1, -T, -1)
    near = positions.buckets // 2
    if positions.buckets:
        # In float32, as the published code rounds.
        size = np.maximum(np.abs(distance), near).astype(np.float32)
        ratio = np.log(size / np.float32(near)) / np.float32(math.log((positions.distance - 1) / near))
        far = np.ceil(ratio * np.float32(near - 1)) + near
        distance = np.where(np.abs(distance) <= near, distance, np.sign(distance) * far).astype(int)
    return np.clip(distance + positions.span, 0, 2 * positions.span - 1)


def position_scores(
    positions: Disentangled,
    params: dict,
    declared: dict[str, Declaration],
    query_BTHK: jax.Array,
    key_BTHK: jax.Array,
    relative_RD: jax.Array,
) -> jax.Array:
    """Return what positions add to the products of queries and keys, unscaled: float32 [B, H, T, T].

    Args:
      positions: a config's `disentangled`.
      params: one layer's, of attention.
      declared: what they are.
      query_BTHK, key_BTHK: of content.
      relative_RD: the table of relative positions, normed.
    """
    rows = relative_rows(positions, query_BTHK.shape[1])
    scores_BHTT = 0.0
    for term, content_BTHK, name, order in (
        ("c2p", query_BTHK, "key", rows),
        ("p2c", key_BTHK, "query", rows[::-1]),
    ):
        if term not in positions.terms:
            continue
        name = name if positions.shared else f"position_{name}"
        # Of all the table, not of the rows of each distance: there may be many more of those.
        vectors_RHK = linear(relative_RD[None], params, declared, name)[0]
        one_BHTC = jnp.einsum(
            "bthk,chk->bhtc", content_BTHK, vectors_RHK[order], preferred_element_type=jnp.float32
        )
        one_BHTT = _by_key(one_BHTC)
        scores_BHTT = scores_BHTT + (one_BHTT if term == "c2p" else one_BHTT.swapaxes(2, 3))
    return scores_BHTT


def _by_key(scores_BHTC: jax.Array) -> jax.Array:
    """Turn columns of distances into columns of tokens: entry (t, s) is of column s - t + T - 1.

    With one more column a row of C + 1 read as rows of C begins one column earlier each time: no gather.
    """
    B, H, T, C = scores_BHTC.shape
    padded = jnp.pad(scores_BHTC, ((0, 0), (0, 0), (0, 0), (0, 1)))
    return padded.reshape(B, H, T * (C + 1))[..., : T * C].reshape(B, H, T, C)[..., T - 1 :]
