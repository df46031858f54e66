"""The rotation as one dense matrix in float64: the oracle."""

import numpy as np

from jaxllm_kernels.hadamard_rotate.matrix import block_sizes


def rotation_matrix(length, block_size, signs=None):
    """Return the orthogonal Q with rotate(x) = Q x, float64 [length, length]."""
    Q = np.zeros((length, length))
    start = 0
    for size in block_sizes(length, block_size):
        i = np.arange(size)
        parity = np.vectorize(lambda n: bin(n).count("1") % 2)(i[:, None] & i[None, :])
        Q[start : start + size, start : start + size] = (1.0 - 2.0 * parity) / np.sqrt(size)
        start += size
    return Q if signs is None else Q * np.asarray(signs, np.float64)
