"""Cross-entropy of a linear head without its logits in memory."""

from jaxllm_kernels.linear_cross_entropy.api import (
    IMPLEMENTATIONS,
    LossSums,
    linear_cross_entropy,
    token_log_probs,
)

__all__ = [
    "IMPLEMENTATIONS",
    "LossSums",
    "linear_cross_entropy",
    "token_log_probs",
]
