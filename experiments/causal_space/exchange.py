"""The paper's own ascent, descent and control, and how far each of them goes.

Un-normalised gradients of a linear probe's error, the norm kept after every step. The control exchanges them
between the samples of a pair. A step adds c e_j M to e_i and c e_i M to e_j, so the pair's sum of errors is
multiplied by 1 + c M, as in ascent: what exchanges gradients travels with what climbs.
"""

import numpy as np

from jaxllm.interpret import LinearProbe

WAYS = ("descent", "ascent", "exchanged")
_FIRST = 267 / 443  # the paper's loss after its first step of descent, in parts of that before


def published_edits(probe: LinearProbe, x_BD: np.ndarray, target_BO: np.ndarray, steps: int) -> dict:
    """Return {way: {"displacement": [B], "loss": a number a step}} of the paper's three edits.

    The step's size is that at which the first step of descent lowers the loss as the paper's did.

    Args:
      probe: linear.
      x_BD: states; of an odd number the last is left out.
      target_BO: what the probe should say.
      steps: as many; the paper's are 40 to 100.
    """
    w_DO, b_O = (np.asarray(x, np.float64) for x in probe)
    even = len(x_BD) // 2 * 2
    x_BD, target_BO = np.asarray(x_BD[:even], np.float64), np.asarray(target_BO[:even], np.float64)
    size_B1 = np.linalg.norm(x_BD, axis=1, keepdims=True)
    error = lambda y_BD: y_BD @ w_DO + b_O - target_BO
    loss = lambda y_BD: float(np.mean(error(y_BD) ** 2))
    slope = lambda y_BD: error(y_BD) @ w_DO.T
    # loss(x - c slope) is a parabola in c: the smaller c at which it is the wanted part of loss(x).
    along = slope(x_BD) @ w_DO
    a, b, c = np.mean(along**2), -2 * np.mean(along * error(x_BD)), loss(x_BD) * (1 - _FIRST)
    below = b**2 - 4 * a * c
    rate = (-b - np.sqrt(below)) / (2 * a) if below > 0 else -b / (2 * a)
    partner = np.arange(even) ^ 1
    found = {}
    for way in WAYS:
        y_BD, losses = x_BD, [loss(x_BD)]
        for _ in range(steps):
            step_BD = slope(y_BD)
            y_BD = y_BD + rate * {"descent": -step_BD, "ascent": step_BD, "exchanged": step_BD[partner]}[way]
            y_BD = y_BD * size_B1 / np.linalg.norm(y_BD, axis=1, keepdims=True)
            losses.append(loss(y_BD))
        moved = np.linalg.norm(y_BD - x_BD, axis=1) / size_B1[:, 0]
        found[way] = {"displacement": moved.tolist(), "loss": losses}
    return found
