"""Stochastic rounding of float32 to narrower types, with the random bits an operand."""

import jax
import jax.numpy as jnp

_INFINITY_BITS = 0x7F800000


def stochastic_round(x: jax.Array, bits: jax.Array, dtype=jnp.bfloat16) -> jax.Array:
    """Return one of the two neighbours of x in `dtype`, the nearer one the likelier, unbiased.

        P(upper) = (x - lower) / (upper - lower)

    A value of `dtype` stays itself; Inf and NaN stay what they are. A value above the largest of
    bfloat16 may become Inf; of other types it becomes what `astype` makes of it.

    Args:
      x: float32, any shape.
      bits: uint16 or uint32 (the low 16 bits count), shape of x, uniform. For 8-bit types uint32,
        of which 24 bits count: they drop 20 and 21 bits of float32.
      dtype: bfloat16, float16, float8_e4m3fn, float8_e5m2; float32 returns x.

    Examples:
      >>> x, bits = jnp.float32(1 + 1 / 512), jnp.array([0, 0x7FFF, 0x8000, 0xFFFF], jnp.uint16)
      >>> print(stochastic_round(jnp.full(4, x), bits))  # neighbours 1 and 1 + 1/128; a quarter up
      [1 1 1 1.00781]
    """
    dtype = jnp.dtype(dtype)
    if x.dtype != jnp.float32:
        raise ValueError(f"stochastic_round needs float32, not {x.dtype}: it was rounded before")
    if bits.dtype not in (jnp.uint16, jnp.uint32):
        raise ValueError(f"random bits must be uint16 or uint32, not {bits.dtype}")
    if dtype == jnp.float32:
        return x
    if dtype == jnp.bfloat16:
        return _round_to_bfloat16(x, bits.astype(jnp.uint32) & 0xFFFF)
    return _round_to_narrow(x, bits, dtype)


def _round_to_bfloat16(x, low):
    # bfloat16 is the upper half of float32; the carry out of the lower half does the rounding. Infinity has
    # no lower half to carry from; the carry would turn a NaN with a full mantissa into -0.
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.platform_dependent(word, low, cpu=_upper_half, default=_cast)


def _cast(word, low):
    # The cast is of a value that is one of bfloat16 already, so a compiler that drops casts to "keep excess
    # precision" undoes nothing. (Ending in uint16 makes XLA's TPU compiler write weights and moments in two
    # loops, 2.3 times the bytes.)
    finite = (word & jnp.uint32(_INFINITY_BITS)) != jnp.uint32(_INFINITY_BITS)
    rounded = jnp.where(finite, (word + low) & jnp.uint32(0xFFFF0000), word)
    return jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(jnp.bfloat16)


def _upper_half(word, low):
    # On a CPU a cast to bfloat16 is a rounding of its own, as long as ours. A NaN whose bits are
    # all in the lower half would become an infinity: one more is set in this half.
    nan = (word << 1) > jnp.uint32(2 * _INFINITY_BITS)
    half = jnp.where(nan, word | jnp.uint32(0x00400000), word + low) >> 16
    return jax.lax.bitcast_convert_type(half.astype(jnp.uint16), jnp.bfloat16)


def _round_to_narrow(x, bits, dtype):
    """Round to a type with another exponent width, its subnormals included."""
    info = jnp.finfo(dtype)
    # Distance of neighbours at x: a power of two, at least that of the subnormals. ldexp of the
    # exponent field alone, so that nothing is rounded on the way.
    exponent = (jax.lax.bitcast_convert_type(x, jnp.uint32) & _INFINITY_BITS) >> 23
    exponent = jnp.maximum(exponent.astype(jnp.int32) - 127, int(info.minexp)) - info.nmant
    spacing = jnp.ldexp(jnp.float32(1), exponent)
    steps = jnp.abs(x) / spacing  # exact: a division by a power of two, below 2**(nmant + 1)
    below = jnp.floor(steps)
    width, kept = (16, bits) if bits.dtype == jnp.uint16 else (24, bits >> 8)
    if info.bits == 16 and bits.dtype == jnp.uint32:
        width, kept = 16, bits & 0xFFFF
    up = (steps - below) * 2.0**width > kept.astype(jnp.float32)
    rounded = jnp.copysign((below + up) * spacing, x)
    inside = jnp.abs(x) <= jnp.float32(info.max)
    return jnp.where(inside, rounded, x).astype(dtype)
