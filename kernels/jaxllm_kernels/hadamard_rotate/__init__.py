"""Random orthogonal rotation by signs and a blockwise Walsh-Hadamard transform."""

from jaxllm_kernels.hadamard_rotate.api import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxllm_kernels.hadamard_rotate.api import hadamard_rotate as hadamard_rotate
from jaxllm_kernels.hadamard_rotate.matrix import block_sizes as block_sizes
from jaxllm_kernels.hadamard_rotate.matrix import hadamard_matrix as hadamard_matrix
from jaxllm_kernels.hadamard_rotate.matrix import random_signs as random_signs
