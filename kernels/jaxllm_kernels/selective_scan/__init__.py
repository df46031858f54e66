"""Mamba's selective scan, forward and backward, and one step of it for cached decoding."""

from jaxllm_kernels.selective_scan.api import IMPLEMENTATIONS, selective_scan, selective_step

__all__ = [
    "IMPLEMENTATIONS",
    "selective_scan",
    "selective_step",
]
