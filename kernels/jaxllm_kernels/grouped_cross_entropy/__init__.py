"""Loss of a head that predicts a token's group, then the token inside the group."""

from jaxllm_kernels.grouped_cross_entropy.api import GroupedLossSums as GroupedLossSums
from jaxllm_kernels.grouped_cross_entropy.api import GroupedWeights as GroupedWeights
from jaxllm_kernels.grouped_cross_entropy.api import grouped_cross_entropy as grouped_cross_entropy
from jaxllm_kernels.grouped_cross_entropy.api import joint_log_probs as joint_log_probs
from jaxllm_kernels.grouped_cross_entropy.api import scaled as scaled
