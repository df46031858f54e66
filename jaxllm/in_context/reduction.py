"""From a model's wide vectors to the few features of a module: principal components, whitened."""

from dataclasses import dataclass

import numpy as np

from jaxllm.errors import UserError


@dataclass(frozen=True, eq=False)
class Reduction:
    """A mean, and directions scaled so that what they were fitted on varies about as much along each.

    Suffixes: N vectors, D their width, F features.
    """

    mean_D: np.ndarray  # float64
    directions_DF: np.ndarray  # float64

    def __call__(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the features of vectors, float32 [N, F].

        Raises:
          UserError: vectors of another width, or not finite.
        """
        vectors_ND = check_vectors(vectors_ND)
        if vectors_ND.shape[1] != len(self.mean_D):
            raise UserError(
                f"vectors have {vectors_ND.shape[1]} numbers, and those that were fitted "
                f"{len(self.mean_D)}; embed both by one model"
            )
        return ((vectors_ND - self.mean_D) @ self.directions_DF).astype(np.float32)


def fit_reduction(vectors_KD: np.ndarray, features: int, *, shrinkage: float = 0.0) -> Reduction:
    """Return the largest principal components of vectors, each scaled by its variance to ** -1/2.

    The variances are shrunk towards their mean first: (1 - shrinkage) * own + shrinkage * mean. 0 whitens, as
    the paper does, and blows up what hardly varies when vectors are few; 1 keeps the components' proportions.

    Args:
      vectors_KD: what the mean and the components are those of: the labelled vectors alone.
      features: how many components.
      shrinkage: from 0 to 1.

    Raises:
      UserError: too few vectors for so many components, or vectors that hardly differ.

    Examples:
      >>> vectors = np.random.default_rng(0).normal(size=(50, 5)) * [9, 3, 1, 1, 1]
      >>> np.cov(fit_reduction(vectors, 2)(vectors).T).round(3) + 0.0
      array([[1., 0.],
             [0., 1.]])
    """
    vectors_KD = check_vectors(vectors_KD).astype(np.float64)
    K, D = vectors_KD.shape
    if not 0 <= shrinkage <= 1:
        raise UserError(f"shrinkage is {shrinkage}; give a number from 0, which whitens, to 1")
    if features > min(K - 1, D):
        vary = f"{K} labelled vectors vary in {max(K - 1, 0)} directions"
        lack = vary if K - 1 < D else f"vectors have {D} numbers"
        raise UserError(
            f"{lack}, and {features} components are asked for; give more examples, or fewer components"
        )
    mean_D = vectors_KD.mean(axis=0)
    _, size_C, rows_CD = np.linalg.svd(vectors_KD - mean_D, full_matrices=False)
    own_F = size_C[:features] ** 2 / (K - 1)
    variance_F = (1 - shrinkage) * own_F + shrinkage * own_F.mean()
    if variance_F[-1] <= 1e-10 * max(own_F[0], np.finfo(np.float64).tiny):
        some = int((own_F > 1e-10 * own_F[0]).sum()) if own_F[0] > 0 else 0
        raise UserError(
            f"the {K} labelled vectors vary in {some} directions, and {features} components are asked for; "
            "take fewer components, a shrinkage above 0, or examples that differ"
        )
    rows_FD = rows_CD[:features]
    # A component's sign is arbitrary; without a rule it would change with the order of the vectors.
    largest_F = np.take_along_axis(rows_FD, np.abs(rows_FD).argmax(axis=1)[:, None], axis=1)[:, 0]
    return Reduction(mean_D, (rows_FD * np.sign(largest_F)[:, None]).T * variance_F**-0.5)


def check_vectors(vectors) -> np.ndarray:
    """Return vectors as an array.

    Raises:
      UserError: not [N, D], or not finite.
    """
    try:
        vectors = np.asarray(vectors)
    except ValueError as error:
        raise UserError("vectors differ in length; give an array [N, D]") from error
    if vectors.ndim != 2 or not vectors.shape[1] or not np.issubdtype(vectors.dtype, np.number):
        raise UserError(
            f"vectors are {vectors.dtype}{list(vectors.shape)}; give numbers [N, D], a row an example"
        )
    if not np.isfinite(vectors).all():
        row = int(np.argwhere(~np.isfinite(vectors))[0][0])
        raise UserError(f"vector {row} holds a number that is not finite; leave the example out")
    return vectors
