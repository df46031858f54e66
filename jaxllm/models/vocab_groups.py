"""A vocabulary cut into groups of equally many tokens."""

import base64
import functools
import math
import zlib

import numpy as np

from jaxllm.errors import UserError, brief

_MOST_BYTES = 4 * 2**24  # of an order; a deflated text of a few bytes may claim more


class VocabGroups(str):
    """An order of the vocabulary, cut every K tokens: balanced, and no group is empty.

    The token of rank r is in group r // K, slot r % K; only the last group may be shorter. The value is a
    text, which configs compare, hash and write as JSON like any other: K, the tokenizer's fingerprint, and
    the order (int32 differences, deflated, in base64). Shown to people it is short.

    Examples:
      >>> groups = VocabGroups.of([2, 0, 4, 1, 3], slots=2)
      >>> groups
      VocabGroups(5 tokens in 3 groups of 2)
      >>> groups.sizes.tolist(), groups.rank.tolist()
      ([2, 2, 1], [1, 3, 0, 4, 2])
      >>> groups.extended(7).order.tolist()
      [2, 0, 4, 1, 3, 5, 6]
    """

    @classmethod
    def of(cls, order, slots: int | None = None, tokenizer: str = "") -> "VocabGroups":
        """Return the groups of an order.

        Args:
          order: int [V], every id once.
          slots: K, tokens of a group; None: the square root of V, which makes the fewest logits.
          tokenizer: fingerprint of the tokenizer whose ids these are; empty: not known.

        Raises:
          UserError: an id is missing, or there would be more groups than tokens, or less than one.
        """
        order = np.asarray(order)
        V = len(order)
        if not np.array_equal(np.sort(order), np.arange(V)):
            raise UserError(f"an order of {V} tokens must hold every id from 0 to {V - 1} once")
        slots = math.ceil(math.sqrt(V)) if slots is None else slots
        if not 1 <= slots <= V:
            raise UserError(
                f"groups of {slots} tokens cannot be made of a vocabulary of {V}; choose from 1 to {V}"
            )
        steps = np.diff(order, prepend=0).astype("<i4")
        packed = base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()
        return cls(f"{slots};{tokenizer};{packed}")

    @classmethod
    def read(cls, text: str) -> "VocabGroups":
        """Return the groups that this text describes.

        Raises:
          UserError: it describes none.
        """
        if not isinstance(text, str):
            raise UserError(f"model.vocab_groups is {brief(text)}; it must be a text that describes groups")
        return _read(text[:])  # of VocabGroups too: str() of one is the short form

    def __str__(self):
        return f"VocabGroups({self.vocab_size} tokens in {self.num_groups} groups of {self.slots})"

    __repr__ = __str__

    @functools.cached_property
    def slots(self) -> int:
        """K, how many tokens a group has."""
        return int(self.split(";")[0])

    @property
    def tokenizer(self) -> str:
        """The fingerprint of the tokenizer whose ids these are, or an empty text."""
        return self.split(";")[1]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The id of each rank, int32 [V]."""
        steps = np.frombuffer(zlib.decompress(base64.b64decode(self.split(";")[2])), "<i4")
        return _read_only(np.cumsum(steps, dtype=np.int32))

    @functools.cached_property
    def rank(self) -> np.ndarray:
        """The rank of each id, int32 [V]."""
        return _read_only(np.argsort(self.order).astype(np.int32))

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return len(self.order)

    @property
    def num_groups(self) -> int:
        """G = ceil(V / K)."""
        return -(-self.vocab_size // self.slots)

    @property
    def sizes(self) -> np.ndarray:
        """How many tokens each group has, int32 [G]."""
        starts = np.arange(self.num_groups, dtype=np.int32) * self.slots
        return np.minimum(self.vocab_size - starts, self.slots)

    @functools.cached_property
    def members(self) -> np.ndarray:
        """The id of each group's slots, int32 [G, K]; where there is no token, 0."""
        padding = self.num_groups * self.slots - self.vocab_size
        return _read_only(np.pad(self.order, (0, padding)).reshape(self.num_groups, self.slots))

    def extended(self, vocab_size: int) -> "VocabGroups":
        """Return the groups of a grown vocabulary: new ids come last, the others keep their places."""
        new = np.arange(self.vocab_size, vocab_size)
        if vocab_size < self.vocab_size:
            raise UserError(f"groups of {self.vocab_size} tokens cannot shrink to vocab_size={vocab_size}")
        return VocabGroups.of(np.concatenate([self.order, new]), self.slots, self.tokenizer)


@functools.lru_cache(16)
def _read(text: str) -> VocabGroups:
    """Check a text that may come from anywhere; a config is made many times with the same one."""
    try:
        slots, _, packed = text.split(";")
        unpacked = zlib.decompressobj()
        steps = unpacked.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
        order = np.cumsum(np.frombuffer(steps, "<i4"), dtype=np.int64)
        good = unpacked.eof and 1 <= int(slots) <= len(order)
        if not good or not np.array_equal(np.sort(order), np.arange(len(order))):
            raise ValueError
    except (ValueError, zlib.error) as error:  # binascii.Error is a ValueError
        raise UserError(
            f"model.vocab_groups {brief(text, 40)} is not a map; set vocab_groups of a training run, which "
            "makes one from its tokenizer, or give VocabGroups.of(order)"
        ) from error
    return VocabGroups(text)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
