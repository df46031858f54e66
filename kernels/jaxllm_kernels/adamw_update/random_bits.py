"""Random words from a counter: one uint32 an element, computed where it is used, never stored.

Every function here is elementwise on the index of an element, so that XLA fuses it into the loop
that rounds, and a sharded array draws the same words as a whole one.
"""

import math

import jax
import jax.numpy as jnp

GENERATORS = ("hash", "threefry")


def random_words(seed: jax.Array, shape: tuple[int, ...], generator: str = "hash") -> jax.Array:
    """Return uint32 of this shape, a function of the seed and of each element's index alone.

    Args:
      seed: uint32 [2]; see `fold_in` for one of each step and parameter.
      shape: of the result. Indices count modulo 2**32.
      generator: "hash", two rounds of a 32-bit mixer, about 20 integer operations an element; or
        "threefry", about 110, equal to `jax.random.bits` with this seed as its key.
    """
    index = _index(shape)
    if generator == "hash":
        return mix(mix(index + seed[0]) ^ seed[1])
    if generator == "threefry":
        return _threefry(seed, index)
    raise ValueError(f"generator '{generator}' is not one of {GENERATORS}")


def fold_in(seed: jax.Array, value: jax.Array | int) -> jax.Array:
    """Return another seed (uint32 [2]), for this value of a step, a parameter or a shard."""
    value = mix(jnp.asarray(value).astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
    first = mix(seed[0] + value)
    return jnp.stack([first, mix(mix(seed[1] ^ value) + first)])


def mix(word: jax.Array) -> jax.Array:
    """Return a bijection of uint32 each of whose bits depends on all of the input's.

    The constants are "lowbias32", which Chris Wellons found by search (2018, public domain).
    """
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _index(shape):
    """Return the row-major index of each element, modulo 2**32."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return index


def _threefry(seed, index):
    # Threefry-2x32, 20 rounds (Salmon et al., SC 2011), on the counter (0, index), as jax.random
    # does it; written out, since its own version is a loop or a custom call that does not fuse.
    keys = (seed[0], seed[1], seed[0] ^ seed[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = jnp.zeros_like(index) + keys[0], index + keys[1]
    for group in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            a = a + b
            b = ((b << distance) | (b >> (32 - distance))) ^ a
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return a ^ b
