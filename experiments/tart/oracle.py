"""What a module is measured against: logistic regressions fitted to the same pairs, many at once."""

import numpy as np


def fit_logistic(x_BKF: np.ndarray, y_BK: np.ndarray, ridge: float, *, steps: int = 30) -> np.ndarray:
    """Return weights of many logistic regressions without intercept, float64 [B, F]: Newton's method.

    They minimise sum over k of cross-entropy + ridge / 2 * |w|^2: scikit-learn's, with C = 1 / ridge.

    Args:
      x_BKF: inputs.
      y_BK: 0 or 1.
      ridge: the penalty; above 0, since few pairs can be separable.
      steps: of Newton's method at most; a step that does not lower a loss is halved.
    """
    x_BKF, y_BK = np.asarray(x_BKF, np.float64), np.asarray(y_BK, np.float64)
    w_BF = np.zeros((len(x_BKF), x_BKF.shape[2]))
    identity_FF = ridge * np.eye(x_BKF.shape[2])

    def loss(w_BF):
        z_BK = np.einsum("bkf,bf->bk", x_BKF, w_BF)
        return np.logaddexp(0, z_BK).sum(1) - (y_BK * z_BK).sum(1) + ridge / 2 * (w_BF**2).sum(1)

    before_B = loss(w_BF)
    for _ in range(steps):
        chance_BK = 1 / (1 + np.exp(-np.einsum("bkf,bf->bk", x_BKF, w_BF)))
        gradient_BF = np.einsum("bkf,bk->bf", x_BKF, chance_BK - y_BK) + ridge * w_BF
        curved_BKF = x_BKF * (chance_BK * (1 - chance_BK))[..., None]
        hessian_BFF = np.swapaxes(curved_BKF, 1, 2) @ x_BKF + identity_FF
        move_BF = np.linalg.solve(hessian_BFF, gradient_BF[..., None])[..., 0]
        for _ in range(8):
            after_B = loss(w_BF - move_BF)
            if (after_B <= before_B + 1e-12).all():
                break
            move_BF[after_B > before_B + 1e-12] /= 2
        w_BF = w_BF - move_BF
        before_B = loss(w_BF)
        if np.abs(move_BF).max() < 1e-7:
            break
    return w_BF


def last_log_odds(x_BKF: np.ndarray, y_BK: np.ndarray, ridge: float) -> np.ndarray:
    """Return the log-odds of each problem's last label by a fit to all pairs before it, [B]."""
    w_BF = fit_logistic(x_BKF[:, :-1], y_BK[:, :-1], ridge)
    return np.einsum("bf,bf->b", x_BKF[:, -1].astype(np.float64), w_BF)
