"""A slope and a shift of log-odds, fitted to labels (Platt 1999), kept near those that change nothing."""

import numpy as np


def fit_platt(
    z_N: np.ndarray, y_N: np.ndarray, *, penalty: float = 1.0, steps: int = 50
) -> tuple[float, float]:
    """Return (slope, shift) of the least cross-entropy of sigmoid(slope * z + shift), by Newton's method.

    Args:
      z_N: log-odds of 1.
      y_N: 0 or 1.
      penalty: of (slope - 1)^2 / 2 and shift^2 / 2, beside the sum over N.
      steps: of Newton's method at most.

    Examples:
      >>> fit_platt(np.array([0.0, 0.0]), np.array([0, 1]))
      (1.0, 0.0)
    """
    inputs_N2 = np.stack([z_N, np.ones_like(z_N)], axis=1).astype(np.float64)
    start_2 = np.array([1.0, 0.0])
    weights_2 = start_2.copy()

    def loss(weights_2):
        margin_N = np.where(y_N > 0, 1, -1) * (inputs_N2 @ weights_2)
        return np.logaddexp(0, -margin_N).sum() + penalty / 2 * np.sum((weights_2 - start_2) ** 2)

    for _ in range(steps):
        chance_N = 1 / (1 + np.exp(-np.clip(inputs_N2 @ weights_2, -500, 500)))
        gradient_2 = inputs_N2.T @ (chance_N - y_N) + penalty * (weights_2 - start_2)
        curvature_N = chance_N * (1 - chance_N)
        hessian_22 = (inputs_N2 * curvature_N[:, None]).T @ inputs_N2 + penalty * np.eye(2)
        move_2 = np.linalg.solve(hessian_22, gradient_2)
        while loss(weights_2 - move_2) > loss(weights_2) + 1e-12:  # too far: the loss is convex, so halve it
            move_2 = move_2 / 2
        weights_2 = weights_2 - move_2
        if np.abs(move_2).max() < 1e-9:
            break
    return float(weights_2[0]), float(weights_2[1])
