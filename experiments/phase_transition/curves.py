"""Curves over checkpoints: when copying emerged, where predictive power peaks, and how far it then falls."""

from collections.abc import Callable

import numpy as np


def transition(values: list[float], tokens: list[float]) -> float:
    """Return when a score rose: the middle, in log tokens, of its largest increase between checkpoints.

    Examples:
      >>> transition([0.0, 0.1, 0.9, 1.0], [10, 100, 1000, 10_000])
      316.2...
    """
    rise = int(np.argmax(np.diff(values)))
    return float(np.sqrt(tokens[rise] * tokens[rise + 1]))


def copied(run: dict) -> bool:
    """Say whether induction heads appeared: the best head's score is four times the null's."""
    return run["copying"][-1] > 4 * run["null"][-1]


def shift(run: dict, ppp: list[float]) -> float:
    """Return log2 of the tokens at the PPP peak over those at the transition."""
    peak = run["tokens"][int(np.argmax(ppp))]
    return float(np.log2(peak / transition(run["copying"], run["tokens"])))


def peak(halves_CH: np.ndarray) -> float:
    """Return PPP at its peak, which is chosen on other texts than it is judged on: noise then adds nothing.

    Args:
      halves_CH: PPP of each checkpoint on each half of the texts.

    Examples:
      >>> peak([[0, 0.5], [3, 3.5], [1, 1.5]])
      3.25
    """
    halves_CH = np.asarray(halves_CH)
    chosen = halves_CH.argmax(axis=0)[::-1]
    return float(halves_CH[chosen, [0, 1]].mean())


def fall(halves_CH: np.ndarray) -> float:
    """Return PPP at its `peak` over PPP at the end.

    Examples:
      >>> fall([[0, 0.5], [3, 3.5], [1, 1.5]])
      2.0
    """
    return peak(halves_CH) - float(np.mean(halves_CH[-1]))


def by_seed(arms: list[list[dict]], figure: Callable[[dict], float], only=lambda run: True) -> list[float]:
    """Return a figure of each seed: the mean over arms, whose runs with that seed are no further evidence.

    Args:
      arms: the runs of each, in the order of the seeds.
      only: which runs count; a seed without any is left out.

    Examples:
      >>> by_seed([[{"loss": 2}, {"loss": 4}], [{"loss": 3}, {"loss": 9}]], lambda run: run["loss"])
      [2.5, 6.5]
    """
    seeds = ([figure(run) for run in some if only(run)] for some in zip(*arms, strict=True))
    return [float(np.mean(one)) for one in seeds if one]
