"""A closed-form language of labelled texts: label prior times a bigram model of words for each label.

Everything that generative calibration estimates is known here: p(y), p(x | y) and p(y | x). A model that is
wrong about p(y) alone is what the method repairs; one that is wrong about p(x | y) is its negative control.
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxllm.score import CALIBRATORS, estimate_prior, macro_auroc, macro_f1
from jaxllm.score.prior import log_softmax


@dataclass(frozen=True)
class World:
    """Texts of a fixed number of words.

    Attributes:
      prior_Y: p(y).
      start_YW: p(first word | y).
      next_YWW: p(word | the word before it, y).
      length: words in a text.
    """

    prior_Y: np.ndarray
    start_YW: np.ndarray
    next_YWW: np.ndarray
    length: int = 6

    @classmethod
    def draw(cls, random: np.random.Generator, labels: int = 2, words: int = 12) -> "World":
        """Return a world whose labels are told apart by their words, but not always."""
        common_WW = random.dirichlet(np.ones(words), words)
        own_YWW = random.dirichlet(np.full(words, 0.5), (labels, words))
        next_YWW = 0.75 * common_WW + 0.25 * own_YWW
        return cls(np.full(labels, 1 / labels), next_YWW.mean(axis=1), next_YWW)

    def sample(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (words [N, T], labels [N])."""
        label_N = random.choice(len(self.prior_Y), count, p=self.prior_Y)
        words_NT = np.zeros((count, self.length), np.int64)
        for place in range(self.length):
            p_NW = self.start_YW[label_N] if place == 0 else self.next_YWW[label_N, words_NT[:, place - 1]]
            above_NW = random.random((count, 1)) > np.cumsum(p_NW, axis=1)
            words_NT[:, place] = np.minimum(above_NW.sum(axis=1), p_NW.shape[1] - 1)
        return words_NT, label_N

    def log_posterior(self, words_NT: np.ndarray) -> np.ndarray:
        """Return log p(y | x), float64 [N, Y]."""
        joint_YN = np.log(self.prior_Y)[:, None] + np.log(self.start_YW[:, words_NT[:, 0]])
        for before, after in zip(words_NT.T, words_NT.T[1:], strict=False):
            joint_YN = joint_YN + np.log(self.next_YWW[:, before, after])
        return log_softmax(joint_YN.T)


def repair(seed: int, *, samples: int, tests: int = 4000) -> dict[str, float]:
    """Return macro-F1 on balanced texts of a model with a skewed p(y), and of one with another p(x | y).

    bayes: the true model's; icl/PART and generative/PART: before and after calibration, PART prior or
      conditional.
    """
    random = np.random.default_rng(seed)
    truth = World.draw(random)
    words_NT, gold_N = truth.sample(tests, random)
    other = World.draw(random)
    models = {
        "prior": replace(truth, prior_Y=np.array([0.9, 0.1])),
        # Half another language, in which its own labels are as likely.
        "conditional": replace(
            truth, next_YWW=0.5 * truth.next_YWW + 0.5 * other.next_YWW[:, ::-1], start_YW=other.start_YW
        ),
    }
    found = {"bayes": macro_f1(truth.log_posterior(words_NT), gold_N)}
    for part, model in models.items():
        before_NY = model.log_posterior(words_NT)
        prior = estimate_prior(model.log_posterior(model.sample(samples, random)[0]))
        after_NY = CALIBRATORS["generative"](before_NY, prior)
        found[f"icl/{part}"], found[f"generative/{part}"] = (
            macro_f1(x_NY, gold_N) for x_NY in (before_NY, after_NY)
        )
        found[f"auroc_change/{part}"] = abs(macro_auroc(before_NY, gold_N) - macro_auroc(after_NY, gold_N))
    return found


def prior_errors(sizes: tuple[int, ...], repeats: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (|estimate - truth| of p(y = 0), the standard error that each states): [sizes, repeats] each."""
    random = np.random.default_rng(seed)
    world = replace(World.draw(random), prior_Y=np.array([0.8, 0.2]))
    errors, stated = np.zeros((2, len(sizes), repeats))
    for row, size in enumerate(sizes):
        for column in range(repeats):
            prior = estimate_prior(world.log_posterior(world.sample(size, random)[0]))
            errors[row, column] = abs(np.exp(prior.log_probs_Y[0]) - world.prior_Y[0])
            stated[row, column] = prior.standard_error_Y[0]
    return errors, stated
