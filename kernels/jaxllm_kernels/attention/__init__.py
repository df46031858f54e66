"""Scaled dot-product attention with sinks, windows, grouped heads and document masks."""

from jaxllm_kernels.attention.api import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxllm_kernels.attention.api import attention as attention
from jaxllm_kernels.attention.api import attention_with_lse as attention_with_lse
from jaxllm_kernels.attention.api import sink_logits as sink_logits
from jaxllm_kernels.attention.reference import attention_probs as attention_probs
from jaxllm_kernels.attention.reference import attention_scores as attention_scores
from jaxllm_kernels.attention.reference import mix as mix
from jaxllm_kernels.attention.visibility import visible as visible
