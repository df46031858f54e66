"""Kurtosis over channels: how far a few of them stand out from the rest."""

import jax
import jax.numpy as jnp
from jaxllm_kernels.dtypes import widened


def kurtosis(x: jax.Array, axis: int = -1) -> jax.Array:
    """Return E[(x - mean)^4] / E[(x - mean)^2]^2 along an axis, in float32 (or wider, if x is).

    Raw kurtosis: 3 is not subtracted. A vector of equal numbers has none (NaN). Equation 2 of "From
    Attention to Activation" (arXiv 2410.17174), there with the axis of channels.

    Examples:
      >>> float(kurtosis(jnp.array([1.0, -1.0, 1.0, -1.0])))
      1.0
    """
    x = x.astype(widened(x.dtype))
    centred = x - jnp.mean(x, axis, keepdims=True)
    # Far from zero the mean is rounded as coarsely as x is; a second one takes away what it left.
    centred = centred - jnp.mean(centred, axis, keepdims=True)
    # The ratio does not depend on the scale; fourth powers of what is below 1 do not overflow.
    centred = centred / jnp.max(jnp.abs(centred), axis, keepdims=True, initial=0)
    square = jnp.square(centred)
    return jnp.mean(jnp.square(square), axis) / jnp.square(jnp.mean(square, axis))


def kurtosis_limits(width: int) -> tuple[float, float]:
    """Return the kurtosis of (a Gaussian vector, on average; one large channel, the most there can be).

    Examples:
      >>> kurtosis_limits(256)
      (2.97..., 254.00...)
    """
    return 3 * (width - 1) / (width + 1), width - 2 + 1 / (width - 1)
