"""Scaled dot-product attention with sinks, windows, grouped heads and document masks."""

from jaxllm_kernels.attention.api import IMPLEMENTATIONS, attention, attention_with_lse, sink_logits
from jaxllm_kernels.attention.reference import attention_probs, attention_scores, mix
from jaxllm_kernels.attention.visibility import visible

__all__ = [
    "IMPLEMENTATIONS",
    "attention",
    "attention_probs",
    "attention_scores",
    "attention_with_lse",
    "mix",
    "sink_logits",
    "visible",
]
