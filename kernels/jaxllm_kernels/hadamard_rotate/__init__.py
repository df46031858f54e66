"""Random orthogonal rotation by signs and a blockwise Walsh-Hadamard transform."""

from jaxllm_kernels.hadamard_rotate.api import IMPLEMENTATIONS, hadamard_rotate
from jaxllm_kernels.hadamard_rotate.matrix import block_sizes, hadamard_matrix, random_signs

__all__ = [
    "IMPLEMENTATIONS",
    "block_sizes",
    "hadamard_matrix",
    "hadamard_rotate",
    "random_signs",
]
