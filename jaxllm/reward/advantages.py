"""What a drawn sequence, or a token of it, is worth beyond a baseline."""

import numpy as np

from jaxllm.errors import UserError

_EPSILON = 1e-6


def leave_one_out(rewards_B: np.ndarray, group: int | None = None) -> np.ndarray:
    """Return r_i less the mean of the others', float32 [B]: a baseline that leaves the gradient unbiased.

    Kool et al., 2019; Ahmadian et al., arXiv 2402.14740 (RLOO).

    Args:
      rewards_B: of sequences.
      group: so many in a row, of one prompt say, are compared with one another; None: all.

    Raises:
      UserError: nothing to compare with.

    Examples:
      >>> leave_one_out(np.array([1.0, 2.0, 6.0])).tolist()
      [-3.0, -1.5, 4.5]
    """
    rewards_NG = _groups(rewards_B, group)
    G = rewards_NG.shape[1]
    others_NG = (rewards_NG.sum(axis=1, keepdims=True) - rewards_NG) / (G - 1)
    return (rewards_NG - others_NG).reshape(-1).astype(np.float32)


def group_standardised(rewards_B: np.ndarray, group: int | None = None) -> np.ndarray:
    """Return rewards standardised within groups, float32 [B]: GRPO's (Shao et al., arXiv 2402.03300).

    A group whose rewards are all equal says nothing: 0. Arguments are those of `leave_one_out`.

    Examples:
      >>> group_standardised(np.array([1.0, 3.0, 5.0, 5.0]), group=2).round(3).tolist()
      [-1.0, 1.0, 0.0, 0.0]
    """
    return standardised(_groups(rewards_B, group)).reshape(-1).astype(np.float32)


def standardised(values: np.ndarray) -> np.ndarray:
    """Return values less their mean over the last axis, by their standard deviation; equal ones become 0."""
    values = np.asarray(values, np.float64)
    return (values - values.mean(axis=-1, keepdims=True)) / (values.std(axis=-1, keepdims=True) + _EPSILON)


def kl_estimates(log_probs_BT: np.ndarray, reference_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    """Return log p - log p_ref of each drawn token, [B, T]: their sum's mean is the KL divergence.

    It is one of p from the reference only if the tokens were drawn from p, untruncated, at temperature 1.
    """
    return np.where(mask_BT > 0, np.asarray(log_probs_BT) - np.asarray(reference_BT), 0.0)


def generalised_advantages(
    rewards_BT: np.ndarray,
    values_BT: np.ndarray,
    mask_BT: np.ndarray,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
) -> np.ndarray:
    """Return sum_l (discount decay)^l delta_{t+l}, float32 [B, T] (Schulman et al., arXiv 1506.02438).

    delta_t = r_t + discount V_{t+1} - V_t; after a sequence's last token V is 0. Masked tokens come before
    or after the drawn ones, never between them.

    Args:
      rewards_BT: a terminal reward stands at the last drawn token, a KL penalty at every one.
      values_BT: what is expected at each token before it is drawn; zeros and decay=1 give returns to go.
      mask_BT: 1 where a token was drawn.
      discount: gamma.
      decay: lambda.
    """
    mask_BT = np.asarray(mask_BT, np.float64)
    rewards_BT, values_BT = (np.asarray(x, np.float64) * mask_BT for x in (rewards_BT, values_BT))
    found_BT, ahead_B, value_B = np.zeros_like(mask_BT), np.zeros(len(mask_BT)), np.zeros(len(mask_BT))
    for t in reversed(range(mask_BT.shape[1])):
        delta_B = rewards_BT[:, t] + discount * value_B - values_BT[:, t]
        ahead_B = (delta_B + discount * decay * ahead_B) * mask_BT[:, t]
        found_BT[:, t], value_B = ahead_B, values_BT[:, t]
    return found_BT.astype(np.float32)


def _groups(rewards_B, group) -> np.ndarray:
    rewards_B = np.asarray(rewards_B, np.float64)
    group = len(rewards_B) if group is None else group
    if group < 2 or len(rewards_B) % group:
        raise UserError(
            f"{len(rewards_B)} rewards in groups of {group} have no others to be compared with; give groups "
            "of 2 or more that divide them"
        )
    return rewards_B.reshape(-1, group)
