"""The six tasks of mechanistic architecture design, MAD: their sizes, their draws, and what can be reached.

Poli et al., Mechanistic Design and Scaling of Hybrid Architectures, arXiv 2403.17844.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np

from jaxllm.config import Config, Count, CountOrZero, Range, Seed
from jaxllm.errors import UserError
from jaxllm.synthetic.fuzzy_recall import SHORTEST_SEQUENCE, draw_fuzzy_recall
from jaxllm.synthetic.memory import draw_compression, draw_memorisation, draw_selective_copying, fact_table
from jaxllm.synthetic.recall import draw_recall

TASKS = (
    "in_context_recall",
    "noisy_recall",
    "fuzzy_recall",
    "memorisation",
    "selective_copying",
    "compression",
)
_NOISY = ("noisy_recall", "compression")


class Instances(NamedTuple):
    """Sequences of a task. A target stands where it is predicted, also of recall: do not shift it again."""

    inputs_NT: np.ndarray  # int32
    targets_NT: np.ndarray  # int32; -100: not counted


@dataclass(frozen=True)
class MadTask(Config):
    """One task at one size. The published sizes are in `MAD`, harder ones in `HARDER`.

    Raises:
      UserError: an unknown task; noise, a vocabulary or a length that it cannot take.

    Examples:
      >>> MadTask("in_context_recall", vocab_size=16, length=32).values
      8
      >>> MadTask("selective_copying", vocab_size=16, length=32)
      Traceback (most recent call last):
      jaxllm.errors.UserError: length is 32; selective_copying of 16 tokens needs 34 or more
    """

    name: Literal[TASKS]
    vocab_size: Count = 16  # with all special ids and those of noise
    length: Count = 128
    train: Count = 12_800  # instances
    test: Count = 1_280
    noise: Annotated[float, Range(0, below=1)] = 0.0  # of noisy_recall's pairs, of compression's tokens
    noise_vocab: CountOrZero = 0  # ids of noise, of vocab_size
    copied: Count = 16  # by selective_copying
    facts: Seed = 12_345  # of memorisation's table, which all sequences share

    def __post_init__(self):
        super().__post_init__()
        if bool(self.noise) != bool(self.noise_vocab) or (self.noise and self.name not in _NOISY):
            raise UserError(
                f"noise is {self.noise} of {self.noise_vocab} ids; {self.name} takes "
                + ("both or neither" if self.name in _NOISY else "neither: set both to 0")
            )
        fewest_keys = 3 if self.name == "fuzzy_recall" else 2
        if min(self.keys, self.values) < fewest_keys:
            raise UserError(
                f"vocab_size is {self.vocab_size}, which leaves {self.name} {self.keys} ids of keys and "
                f"{self.values} of values or data; give more, for {fewest_keys} of each"
            )
        shortest = {"fuzzy_recall": SHORTEST_SEQUENCE, "selective_copying": 2 * self.copied + 2}
        if self.length < shortest.get(self.name, 4):
            of = f" of {self.copied} tokens" if self.name == "selective_copying" else ""
            raise UserError(
                f"length is {self.length}; {self.name}{of} needs {shortest.get(self.name, 4)} or more"
            )
        if self.length % 2 and self.name in ("in_context_recall", "noisy_recall", "memorisation"):
            raise UserError(f"length is {self.length}; {self.name} is of pairs, so give an even number")

    @property
    def values(self) -> int:
        """How many ids a counted target may have; of compression, those of data and noise."""
        match self.name:
            case "selective_copying":
                return self.vocab_size - 2
            case "compression":
                return self.vocab_size - 1
        return self._paired - self.keys

    @property
    def keys(self) -> int:
        """How many ids of keys, or of data, there are."""
        if self.name in ("selective_copying", "compression"):
            return self.values - self.noise_vocab
        return self._paired // 2

    @property
    def _paired(self) -> int:
        special = self.name in ("fuzzy_recall", "memorisation")  # padding; the insert token
        return self.vocab_size - special - self.noise_vocab

    @property
    def guess_level(self) -> float:
        """Return the accuracy of who knows which ids are values, and nothing else; see also `ceiling`."""
        if self.name == "compression":  # of the compress token everything is known
            return ((self.length - 1) / self.values + 1) / self.length
        return 1 / self.values

    @property
    def ceiling(self) -> float:
        """Return the accuracy that training can teach: below 1 where it does not show all facts.

        Examples:
          >>> round(MANTICORE["memorisation"].ceiling, 3)  # 4,095 keys, 4,096 draws of them
          0.632
        """
        if self.name != "memorisation":
            return 1.0
        return 1 - (1 - 1 / self.keys) ** (self.train * (self.length // 2))


def draw_instances(task: MadTask, part: Literal["train", "test"], seed: int) -> Instances:
    """Return the instances of a part, a pure function of the task, the part and the seed.

    In training the recall tasks' targets are the next token, everywhere; in the test the values that can be
    known. All other targets are the same in both.

    Examples:
      >>> test = draw_instances(MAD["noisy_recall"], "test", seed=0)
      >>> test.inputs_NT.shape, bool((test.targets_NT[:, -1] >= 0).all())
      ((1280, 127), True)
    """
    if part not in ("train", "test"):
        raise UserError(f"part is '{part}'; give 'train' or 'test'")
    draw = np.random.default_rng([seed, ("train", "test").index(part)])
    shape = (draw, getattr(task, part), task.length)
    ids = dict(keys=task.keys, values=task.values)
    noise = dict(noise=task.noise, noise_vocab=task.noise_vocab)
    last, every = task.vocab_size - 1, part == "train"
    match task.name:
        case "in_context_recall" | "noisy_recall":
            found = draw_recall(*shape, **ids, **noise, every_target=every)
        case "fuzzy_recall":
            found = draw_fuzzy_recall(*shape, **ids, pad=last, every_target=every)
        case "memorisation":
            found = draw_memorisation(*shape, table=fact_table(**ids, seed=task.facts), insert=last)
        case "selective_copying":
            special = dict(blank=last - 1, copy=last)
            found = draw_selective_copying(*shape, data=task.keys, copied=task.copied, **special)
        case "compression":
            found = draw_compression(*shape, data=task.keys, compress=last, **noise)
    return Instances(*found)


MAD = {
    "in_context_recall": MadTask("in_context_recall"),
    "noisy_recall": MadTask("noisy_recall", vocab_size=32, noise=0.2, noise_vocab=16),
    "fuzzy_recall": MadTask("fuzzy_recall"),
    "memorisation": MadTask("memorisation", vocab_size=256, length=32, train=256),
    "selective_copying": MadTask("selective_copying", length=256),
    "compression": MadTask("compression", length=32),
}

# What is made harder, one field at a time: vocab_size of noisy_recall is its ids of noise and 32, 64 or 128.
HARDER = {
    "in_context_recall": dict(
        vocab_size=(32, 64, 128), length=(256, 512, 1024), train=(6400, 3200, 1600, 800)
    ),
    "noisy_recall": dict(
        vocab_size=(48, 80, 144), length=(256, 512, 1024), train=(6400, 3200, 1600, 800),
        noise=(0.4, 0.6, 0.8),
    ),
    "fuzzy_recall": dict(vocab_size=(32, 64, 128), length=(256, 512, 1024), train=(6400, 3200, 1600, 800)),
    "memorisation": dict(vocab_size=(512, 1024, 2048, 4096, 8192)),
    "selective_copying": dict(
        vocab_size=(32, 64, 128), length=(256, 512, 1024), train=(6400, 3200, 1600, 800), copied=(32, 64, 96)
    ),
    "compression": dict(vocab_size=(32, 64, 128), length=(64, 128, 256), train=(6400, 3200, 1600, 800)),
}  # fmt: skip

# As Manticore's code sets them (arXiv 2406.00894); it leaves compression out.
MANTICORE = {
    name: dataclasses.replace(MAD[name], **change)
    for name, change in {
        "in_context_recall": dict(vocab_size=128, train=800),
        "noisy_recall": dict(vocab_size=144, noise=0.8, train=800),
        "fuzzy_recall": dict(vocab_size=128, train=800),
        "memorisation": dict(vocab_size=8192),
        "selective_copying": dict(vocab_size=128, copied=96, train=800),
    }.items()
}
