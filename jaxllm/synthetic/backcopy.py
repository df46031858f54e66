"""Bigram-Backcopy: characters follow a text's bigrams, but after a trigger the one before it is said again.

Guo et al., arXiv 2410.13835, section 2. The head that copies has nothing to do after all other characters,
which is why it becomes an attention sink there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxllm.errors import UserError


@dataclass(frozen=True, eq=False)
class Backcopy:
    """The task of one text; see `backcopy_task`."""

    characters: Sequence[str]  # of each id; an id more begins a sequence
    chances_VV: np.ndarray  # of the next character, given one
    frequencies_V: np.ndarray  # of characters
    triggers: tuple[int, ...]

    @property
    def begin(self) -> int:
        """The id of the token that begins a sequence."""
        return len(self.characters)

    @property
    def vocab_size(self) -> int:
        """Ids of characters, and of the token that begins."""
        return len(self.characters) + 1

    @cached_property
    def _upto_VV(self) -> np.ndarray:
        return np.cumsum(self.chances_VV, axis=1)

    def after_trigger(self, inputs_NT: np.ndarray) -> np.ndarray:
        """Return bool [N, T]: what comes next is a copy. No copy is made of the token that begins."""
        before_NT = np.roll(inputs_NT, 1, axis=1)
        before_NT[:, 0] = self.begin
        return np.isin(inputs_NT, self.triggers) & (before_NT != self.begin)

    def draw(self, rows: int, length: int, seed: int, *, begin: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets), int32 [N, length]; targets are the inputs that follow.

        Args:
          rows: N.
          seed: of `numpy.random.default_rng`.
          begin: whether every sequence begins with the same token.

        Examples:
          >>> task = backcopy_task("abracadabra", triggers=1)
          >>> inputs, targets = task.draw(2, 6, seed=0)
          >>> ["".join([*task.characters, "^"][i] for i in row) for row in inputs.tolist()]
          ['^cacac', '^abrar']
        """
        draw = np.random.default_rng(seed)
        shown_NT = np.full((rows, length + 1), self.begin, np.int32)
        first = int(begin)
        upto_V = np.cumsum(self.frequencies_V)
        shown_NT[:, first] = _chosen(np.broadcast_to(upto_V, (rows, len(upto_V))), draw)
        for at in range(first + 1, length + 1):
            last_N = shown_NT[:, at - 1]
            next_N = _chosen(self._upto_VV[last_N], draw)
            if at - 2 >= first:
                next_N = np.where(np.isin(last_N, self.triggers), shown_NT[:, at - 2], next_N)
            shown_NT[:, at] = next_N
        return shown_NT[:, :-1], shown_NT[:, 1:]


def backcopy_task(text: str, triggers: int = 3) -> Backcopy:
    """Return the task of a text's bigrams, whose most frequent characters are the triggers.

    Raises:
      UserError: the text has no more different characters than there are to be triggers.
    """
    characters = sorted(set(text))
    if len(characters) <= triggers:
        raise UserError(f"the text has {len(characters)} different characters; {triggers} triggers need more")
    place = {character: i for i, character in enumerate(characters)}
    ids = np.array([place[character] for character in text])
    counts_V = np.bincount(ids, minlength=len(characters))
    pairs_VV = np.zeros((len(characters), len(characters)))
    np.add.at(pairs_VV, (ids[:-1], ids[1:]), 1.0)
    pairs_VV[pairs_VV.sum(axis=1) == 0] = counts_V  # the last character, if it is nowhere else
    chosen = np.argsort(-counts_V, kind="stable")[:triggers]
    chances_VV = pairs_VV / pairs_VV.sum(axis=1, keepdims=True)
    return Backcopy(characters, chances_VV, counts_V / len(ids), tuple(chosen.tolist()))


def _chosen(upto_NV: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return an id of each row by its cumulative chances."""
    at_N = draw.random(len(upto_NV)) * upto_NV[:, -1]
    return (at_N[:, None] >= upto_NV).sum(axis=1)
