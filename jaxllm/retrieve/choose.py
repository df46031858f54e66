"""Which neighbours to take: not those that are too far, nor those that repeat what was taken."""

import numpy as np

from jaxllm.errors import UserError


def choose_informative(
    query_D: np.ndarray, vectors_CD: np.ndarray, k: int, *, noise: float = 0.01, repeat: bool = False
) -> np.ndarray:
    """Return the places of k candidates that together say most of the query, in the order chosen: int [k].

    Each next one most reduces a Gaussian process' variance at the query, with a linear kernel between
    vectors of length 1: SIFT (Hübotter et al., arXiv 2410.08020). The first is the nearest; a candidate that
    repeats those taken says little, and waits.

    Args:
      query_D: the query's vector.
      vectors_CD: the candidates', some hundreds of nearest neighbours.
      k: how many.
      noise: variance of an observation; smaller avoids repetition more.
      repeat: a candidate may be taken again.

    Raises:
      UserError: k above the number of candidates, or a noise that is not above 0.

    Examples:
      >>> candidates = np.array([[1, 0.1], [1, 0.1], [0.6, -0.8]])
      >>> choose_informative(np.array([1.0, 0.0]), candidates, 2).tolist()
      [0, 2]
    """
    if not noise > 0:
        raise UserError(f"noise is {noise}; it must be above 0")
    if not 1 <= k <= len(vectors_CD) and not repeat:
        raise UserError(f"k is {k}; it must be from 1 to the {len(vectors_CD)} candidates")
    all_PD = np.concatenate([np.asarray(query_D)[None], vectors_CD]).astype(np.float64)
    all_PD /= np.maximum(np.linalg.norm(all_PD, axis=1, keepdims=True), 1e-30)
    left_PP, chosen = all_PD @ all_PD.T, []  # covariance given what was taken
    for _ in range(k):
        gain_C = left_PP[0, 1:] ** 2 / (np.diagonal(left_PP)[1:] + noise)
        if not repeat:
            gain_C[chosen] = -1.0
        best = int(np.argmax(gain_C))
        chosen.append(best)
        column_P = left_PP[:, best + 1].copy()
        left_PP -= np.outer(column_P, column_P) / (column_P[best + 1] + noise)
    return np.array(chosen)


def within_distance(distances_BK: np.ndarray, most: float) -> np.ndarray:
    """Return how many of each query's neighbours, nearest first, are no farther than `most`: int [B].

    A query with 0 abstains: count it. A limit that filters nothing is no safeguard; look at what it keeps.

    Examples:
      >>> within_distance(np.array([[0.1, 0.4], [0.9, 1.2]]), most=0.5).tolist()
      [2, 0]
    """
    return np.sum(np.asarray(distances_BK) <= most, axis=1)
