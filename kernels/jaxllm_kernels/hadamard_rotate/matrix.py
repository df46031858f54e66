"""What the rotation is: which blocks an axis falls into, the Hadamard matrix, the signs."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm_kernels.adamw_update.random_bits import random_words


def block_sizes(length: int, block_size: int) -> list[int]:
    """Return the sizes of the blocks of an axis, left to right; they add up to its length.

    What `block_size` does not divide is rotated in the largest powers of two that fit, so that the
    rotation stays orthogonal without padding. A last block of 1 only takes its sign.

    Examples:
      >>> block_sizes(300, 128)
      [128, 128, 32, 8, 4]
    """
    full, rest = divmod(length, block_size)
    bits = [1 << i for i in reversed(range(rest.bit_length())) if rest >> i & 1]
    return [block_size] * full + bits


def random_signs(seed: jax.Array, length: int) -> jax.Array:
    """Return float32 [length] of 1 and -1, a function of the seed (uint32 [2]) and the index.

    Computed where it is used: under jit it takes no memory of the array's size.
    """
    return 1.0 - 2.0 * (random_words(seed, (length,)) >> 31).astype(jnp.float32)


def hadamard_matrix(size: int) -> np.ndarray:
    """Return Sylvester's matrix of 1 and -1: entry (i, j) is (-1) ** popcount(i & j).

    Examples:
      >>> hadamard_matrix(4)[3]
      array([ 1., -1., -1.,  1.], dtype=float32)
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def butterflies(parts: list) -> list:
    """Return the Walsh-Hadamard transform across the parts: sums of them with signs."""
    if len(parts) == 1:
        return parts
    half = len(parts) // 2
    sums = [a + b for a, b in zip(parts[:half], parts[half:], strict=True)]
    differences = [a - b for a, b in zip(parts[:half], parts[half:], strict=True)]
    return butterflies(sums) + butterflies(differences)


def times_signs_matrix(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Return x @ matrix to float32's precision, on units that multiply bfloat16 only.

    The entries of the matrix (1, -1, 0) are bfloat16 values, so a bfloat16 x takes one product and
    a float32 x three: its 24 bits fall into three bfloat16 values, whose sum is exact.

    Args:
      x: bfloat16 or float32 [..., n].
      matrix: bfloat16 [n, n].
    """

    def product(part):
        return jnp.dot(part, matrix, preferred_element_type=jnp.float32)

    if x.dtype == jnp.bfloat16:
        return product(x)
    upper = upper_bits(x)
    middle = upper_bits(x - upper)
    lower = x - upper - middle
    total = product(lower.astype(jnp.bfloat16)) + product(middle.astype(jnp.bfloat16))
    return total + product(upper.astype(jnp.bfloat16))


def upper_bits(x: jax.Array) -> jax.Array:
    """Return float32 x cut off to bfloat16, by its bits: a cast there and back might be dropped."""
    word = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(word, jnp.float32)
