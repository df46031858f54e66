"""Loss of a head that predicts a token's group, then the token inside the group."""

from jaxllm_kernels.grouped_cross_entropy.api import (
    GroupedLossSums,
    GroupedWeights,
    grouped_cross_entropy,
    joint_log_probs,
    scaled,
)

__all__ = [
    "GroupedLossSums",
    "GroupedWeights",
    "grouped_cross_entropy",
    "joint_log_probs",
    "scaled",
]
