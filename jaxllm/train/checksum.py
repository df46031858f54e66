"""A checksum of every array of a state, the same however the arrays are split over devices."""

import jax
import jax.numpy as jnp

from jaxllm import parallel


def checksums(tree) -> dict[str, int]:
    """Return {name: checksum} of a pytree's arrays, by `array_names`.

    A sum modulo 2^32 of mixed words, each word mixed with its place: one changed bit always changes it,
    anything else does but for one case in 2^32. It is computed where the arrays lie, each device its part,
    in one pass over them; arrays in the host's memory pass through the device by blocks of rows.

    Examples:
      >>> one = checksums({"w": jnp.arange(4.0)})
      >>> other = checksums({"w": jnp.arange(4.0).at[2].set(2.0000002)})
      >>> list(one), one == checksums({"w": jnp.arange(4.0)}), one == other
      (['w: float32[4]'], True, False)
    """
    sums = jax.device_get(_checksums(jax.tree.leaves(tree)))
    return {name: int(number) for name, number in zip(array_names(tree), sums, strict=True)}


def array_names(tree) -> list[str]:
    """Return the path, type and shape of each array, or ShapeDtypeStruct, of a pytree."""
    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


@jax.jit
def _checksums(arrays):
    def each(kept, arrays):
        return kept, [_checksum(x) for x in arrays]

    return parallel.streamed(each)((), arrays)[1]


def _checksum(x):
    words = _words(x)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(place)), dtype=jnp.uint32)


def _words(x):
    """Return the bits of an array as uint32."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    about = jnp.iinfo if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo
    bits = about(x.dtype).bits  # of some types less than a byte
    return jax.lax.bitcast_convert_type(x, f"uint{bits}").astype(jnp.uint32)


def _mix(x):
    """Mix the bits of words, one to one (Wellons, "lowbias32")."""
    x ^= x >> 16
    x *= jnp.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

