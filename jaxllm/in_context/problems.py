"""Synthetic problems of logistic regression, an endless stream of them, from easy to hard.

A problem: w ~ alpha N(0, I), x_i ~ N(0, I), y_i ~ Bernoulli(sigmoid(x_i . w + b)); alpha says how little
noise its labels have, and b, 0 in the paper, how unlike their shares are. While a curriculum grows, features
that are not yet in use are 0, and a batch has as many pairs as are: a program is compiled for each stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxllm.config import Config, Count, NotNegative, Positive, Seed
from jaxllm.errors import UserError


class Problems(NamedTuple):
    """Problems of logistic regression."""

    x_BKF: np.ndarray  # float32
    y_BK: np.ndarray  # float32, 0 or 1
    w_BF: np.ndarray  # float32, what decides the labels
    b_B: np.ndarray  # float32, added to x . w
    chance_BK: np.ndarray  # float32, of the label 1


@dataclass(frozen=True)
class Curriculum(Config):
    """What problems are drawn, and how they grow over the steps of a run. The defaults are the paper's."""

    alphas: tuple[Positive, ...] = (10.0,)  # one is drawn for each problem
    bias: NotNegative = 0.0  # of b ~ alpha * bias * N(0, 1)
    first_features: Count = 4
    more_features: Count = 4  # at each stage
    first_pairs: Count = 18
    more_pairs: Count = 30
    feature_steps: Count = 1000  # until there are more features
    pair_steps: Count = 1000  # until there are more pairs
    mixed: bool = False  # a problem has any number of features from the first on, and any of them
    targets: Literal["labels", "chances"] = "labels"  # what the loss compares with; chances are less noisy

    def __post_init__(self):
        super().__post_init__()
        if not self.alphas:
            raise UserError("alphas is empty; give at least one, such as 10, which is nearly free of noise")

    def at(self, step: int, features: int, pairs: int) -> tuple[int, int]:
        """Return how many features and labelled pairs are in use at a step, of those that a module has.

        Examples:
          >>> [Curriculum().at(step, 16, 257) for step in (0, 1000, 3000, 8000)]
          [(4, 18), (8, 48), (16, 108), (16, 257)]
        """
        used_features = self.first_features + step // self.feature_steps * self.more_features
        used_pairs = self.first_pairs + step // self.pair_steps * self.more_pairs
        return min(used_features, features), min(used_pairs, pairs)


def draw_problems(
    draw: np.random.Generator,
    rows: int,
    pairs: int,
    features: int,
    *,
    alphas: tuple[float, ...] = (10.0,),
    bias: float = 0.0,
    used_features: int | None = None,
    fewest_features: int | None = None,
) -> Problems:
    """Return problems of so many pairs.

    Args:
      draw: the source of chance.
      rows: problems.
      pairs: of each, those included whose labels are to be said.
      features: F.
      alphas: one is drawn for each problem, all as likely.
      bias: of b ~ alpha * bias * N(0, 1).
      used_features: the others are 0; None: all.
      fewest_features: how many are used, from these on, and which, is drawn for each problem; None: the
        first `used_features` are.

    Examples:
      >>> problems = draw_problems(np.random.default_rng(0), 2, 5, 3)
      >>> problems.x_BKF.shape, problems.y_BK.shape
      ((2, 5, 3), (2, 5))
    """
    x_BKF = draw.standard_normal((rows, pairs, features), np.float32)
    used = features if used_features is None else used_features
    if fewest_features is None:
        x_BKF[:, :, used:] = 0
    else:
        count_B1 = draw.integers(fewest_features, used, (rows, 1), endpoint=True)
        x_BKF *= (np.argsort(draw.random((rows, features)), axis=1) < count_B1)[:, None]
    alpha_B = draw.choice(np.asarray(alphas, np.float32), rows)
    w_BF = draw.standard_normal((rows, features), np.float32) * alpha_B[:, None]
    b_B = draw.standard_normal(rows, np.float32) * alpha_B * np.float32(bias)
    z_BK = np.einsum("bkf,bf->bk", x_BKF, w_BF) + b_B[:, None]
    chance_BK = 1 / (1 + np.exp(-z_BK.astype(np.float64)))
    y_BK = (draw.random((rows, pairs)) < chance_BK).astype(np.float32)
    return Problems(x_BKF, y_BK, w_BF, b_B, chance_BK.astype(np.float32))


class ProblemBatches:
    """An endless iterator of batches; each is drawn from the seed and its number, so it goes on anywhere."""

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        rows: int,
        pairs: int,
        features: int,
        seed: Seed,
        process: tuple[int, int] = (0, 1),
    ):
        """Begin with the first batch.

        Args:
          curriculum: how problems grow.
          rows: problems a batch, over all processes.
          pairs: labelled pairs of the hardest.
          features: F.
          seed: of all draws.
          process: (this process's number, how many there are): each has a part of every batch.
        """
        self._curriculum, self._seed, self._step = curriculum, seed, 0
        self._shape, self._process = (rows, pairs, features), process

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        (rows, pairs, features), (part, parts) = self._shape, self._process
        used_features, used_pairs = self._curriculum.at(self._step, features, pairs)
        draw = np.random.default_rng([self._seed, self._step])
        self._step += 1
        fewest = min(self._curriculum.first_features, features) if self._curriculum.mixed else None
        drawn = draw_problems(
            draw, rows, used_pairs + 1, features, alphas=self._curriculum.alphas,
            bias=self._curriculum.bias, used_features=used_features,
            fewest_features=fewest,
        )  # fmt: skip
        target_BK = drawn.y_BK if self._curriculum.targets == "labels" else drawn.chance_BK
        batch = {"x": drawn.x_BKF, "y": drawn.y_BK, "target": target_BK}
        return {name: np.array_split(value, parts)[part] for name, value in batch.items()}

    def state(self) -> dict[str, Any]:
        """Return where it stands."""
        return {"step": self._step}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved place."""
        self._step = state["step"]
