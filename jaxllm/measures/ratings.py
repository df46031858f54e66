"""What people said of texts on a scale: means that hold for other raters and texts, and agreement."""

from collections.abc import Callable

import numpy as np

from jaxllm.errors import UserError


def crossed_interval(
    ratings: np.ndarray, raters: np.ndarray, texts: np.ndarray, statistic: Callable[[np.ndarray], float],
    *, draws: int = 1000, level: float = 0.95, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Return the interval of a statistic of ratings when raters and texts are both drawn again.

    A rating counts as often as its rater times as often as its text was drawn.

    Args:
      ratings: [N].
      raters: who gave each, [N].
      texts: what it is of, [N].
      statistic: of weights [N] of the ratings, in the order given.
      draws: resamples.
      level: of the interval.
      seed: of the draws.

    Examples:
      >>> draw = np.random.default_rng(0)
      >>> raters, texts = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
      >>> ratings = 3 + draw.normal(size=20)[raters] + draw.normal(size=30)[texts]
      >>> mean = lambda weights: np.average(ratings, weights=weights)
      >>> low, high = crossed_interval(ratings, raters, texts, mean)
      >>> bool(high - low > 4 * ratings.std() / np.sqrt(600))
      True
    """
    if not len(ratings) == len(raters) == len(texts) or not len(ratings):
        raise UserError(
            f"{len(ratings)} ratings of {len(raters)} raters and {len(texts)} texts; give one of each a "
            "rating"
        )
    rater_N, text_N = (np.unique(x, return_inverse=True)[1] for x in (raters, texts))
    draw, found = np.random.default_rng(seed), []
    for _ in range(draws):
        weights = np.ones(len(ratings))
        for group_N in (rater_N, text_N):
            count = group_N.max() + 1
            weights *= np.bincount(draw.integers(count, size=count), minlength=count)[group_N]
        if weights.sum():
            found.append(statistic(weights))
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def krippendorff_alpha(ratings: np.ndarray) -> float:
    """Return Krippendorff's alpha of ordinal ratings: 1 is agreement, 0 chance.

    Args:
      ratings: [raters, texts]; NaN where a rater did not see a text.

    Raises:
      UserError: no text that two raters saw, or one value only of those.

    Examples:
      >>> krippendorff_alpha(np.array([[1, 2, 3, 6], [1, 2, 3, 6]]))
      1.0
    """
    table = np.asarray(ratings, np.float64)
    table = table[:, (~np.isnan(table)).sum(axis=0) > 1]
    values = np.unique(table[~np.isnan(table)])
    if len(values) < 2:
        raise UserError(
            "agreement needs texts that two raters saw, and more than one value; give more ratings"
        )
    counts_TV = np.stack([(table == value).sum(axis=0) for value in values], axis=1).astype(np.float64)
    seen_T = counts_TV.sum(axis=1)
    pairs = np.einsum("ti,tj,t->ij", counts_TV, counts_TV, 1 / (seen_T - 1))
    pairs -= np.diag(np.einsum("ti,t->i", counts_TV, 1 / (seen_T - 1)))
    totals = pairs.sum(axis=0)
    middle = np.cumsum(totals) - totals / 2  # squared distance of ranks, ends of the stretch counted half
    distance = (middle[:, None] - middle[None]) ** 2
    by_chance = np.outer(totals, totals) - np.diag(totals)
    observed, expected = (pairs * distance).sum(), (by_chance * distance).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)
