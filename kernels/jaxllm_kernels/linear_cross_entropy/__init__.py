"""Cross-entropy of a linear head without its logits in memory."""

from jaxllm_kernels.linear_cross_entropy.api import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxllm_kernels.linear_cross_entropy.api import LossSums as LossSums
from jaxllm_kernels.linear_cross_entropy.api import linear_cross_entropy as linear_cross_entropy
from jaxllm_kernels.linear_cross_entropy.api import token_log_probs as token_log_probs
