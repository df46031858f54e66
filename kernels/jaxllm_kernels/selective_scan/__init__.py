"""Mamba's selective scan, forward and backward, and one step of it for cached decoding."""

from jaxllm_kernels.selective_scan.api import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxllm_kernels.selective_scan.api import selective_scan as selective_scan
from jaxllm_kernels.selective_scan.api import selective_step as selective_step
