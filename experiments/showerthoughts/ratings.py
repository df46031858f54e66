"""Would an analysis of people's ratings find what is there? Raters and texts are simulated, a difference
planted.

The study's six statements have six degrees of agreement. A rating here is a text's quality, what the rater
tends to, and chance, cut to 1 to 6. Real ratings were not released.
"""

import numpy as np

from jaxllm.measures import crossed_interval, krippendorff_alpha, wilson_interval


def simulate(
    gap: float, draw: np.random.Generator, raters: int, texts: int, each: int
) -> dict[str, np.ndarray]:
    """Return ratings of genuine texts and of generated ones, which are worse by `gap` points.

    Args:
      gap: in points of the scale, before cutting.
      draw: the source of chance.
      raters: people.
      texts: of each source.
      each: texts that a rater sees.
    """
    quality = draw.normal(3.6, 0.6, 2 * texts) - gap * (np.arange(2 * texts) >= texts)
    bias = draw.normal(0, 0.5, raters)
    seen = np.concatenate([draw.permutation(2 * texts)[:each] for _ in range(raters)])
    who = np.repeat(np.arange(raters), each)
    rating = np.clip(np.rint(quality[seen] + bias[who] + draw.normal(0, 1.0, len(seen))), 1, 6)
    return {"rating": rating, "rater": who, "text": seen, "generated": seen >= texts}


def difference(
    ratings: dict[str, np.ndarray], draws: int, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return (genuine less generated, its interval over raters and texts)."""
    made = ratings["generated"]

    def gap(weights):
        means = [
            np.sum(weights * ratings["rating"] * side) / max(np.sum(weights * side), 1e-9)
            for side in (~made, made)
        ]
        return means[0] - means[1]

    interval = crossed_interval(
        ratings["rating"], ratings["rater"], ratings["text"], gap, draws=draws, seed=seed
    )
    return gap(np.ones(len(made))), interval


def as_table(ratings: dict[str, np.ndarray]) -> np.ndarray:
    """Return ratings as [raters, texts], NaN where a rater did not see a text."""
    table = np.full((ratings["rater"].max() + 1, ratings["text"].max() + 1), np.nan)
    table[ratings["rater"], ratings["text"]] = ratings["rating"]
    return table


def rating_study(studies: int, draws: int, seed: int = 0) -> dict[str, float]:
    """Return how often intervals hold a planted difference of 0.3 points, and 0 where none is planted.

    And how often people who cannot tell are called better or worse than chance: the sixth statement at 4 and
    above, against 0.5, by Wilson's interval.
    """
    draw, found = np.random.default_rng([seed, 72]), {}
    for name, gap in (("planted", 0.3), ("none", 0.0)):
        held, nothing, gaps = 0, 0, []
        for number in range(studies):
            some = simulate(gap, draw, raters=30, texts=60, each=40)
            mean, (low, high) = difference(some, draws, number)
            gaps.append(mean)
            held += low <= gap <= high
            nothing += low <= 0 <= high
        found |= {
            f"{name}/mean": float(np.mean(gaps)),
            f"{name}/covered": held,
            f"{name}/covers_zero": nothing,
        }
        found[f"{name}/alpha"] = krippendorff_alpha(as_table(some))
    by_chance = 0
    for _ in range(studies):
        some = simulate(0.0, draw, raters=30, texts=60, each=40)
        right = (some["rating"] < 4) == some["generated"]
        low, high = wilson_interval(int(right.sum()), len(right))
        by_chance += low <= 0.5 <= high
    return found | {"detection/covers_chance": by_chance, "studies": studies}
