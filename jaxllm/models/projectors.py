"""Projectors between residual streams of different models: what translates one's features into another's."""

import functools

import jax
import jax.numpy as jnp

from jaxllm.models.architecture import Declaration
from jaxllm.models.linear import linear

# "none": vectors pass as they are. "linear" begins as torch's linear layers do; "linear_identity" as the
# identity; the two with a skip add to the vector, cut or padded with zeros, and begin by adding nothing.
PROJECTORS = ("none", "linear", "linear_identity", "linear_skip", "mlp", "mlp_skip")


def declare_projector(kind: str, inputs: tuple[str, int], outputs: tuple[str, int]) -> dict:
    """Return the parameters of one affine map, or of two with a GELU between them ("mlp").

    Args:
      kind: one of PROJECTORS.
      inputs, outputs: (name, size) of an axis.
    """
    if not kind.startswith("mlp"):
        return _affine("linear", inputs, outputs, _DRAWS[kind])
    hidden = ("mlp", max(inputs[1], outputs[1]))
    first = _affine("hidden", inputs, hidden, _as_torch)
    return first | _affine("linear", hidden, outputs, _nothing if kind == "mlp_skip" else _as_torch)


def project(kind: str, params: dict, x_BTI: jax.Array, inputs: tuple[str, int], outputs: tuple[str, int]):
    """Return x mapped into the other stream, [B, T, outputs], in x's dtype."""
    declared, y = declare_projector(kind, inputs, outputs), x_BTI
    if "hidden" in declared:
        y = jax.nn.gelu(linear(y, params, declared, "hidden"))
    y = linear(y, params, declared, "linear")
    return y + fit(x_BTI, outputs[1]) if kind.endswith("skip") else y


def fit(x: jax.Array, width: int) -> jax.Array:
    """Return x with its last axis cut, or padded with zeros, to a width.

    Examples:
      >>> fit(jnp.ones(2), 3)
      Array([1., 1., 0.], dtype=float32)
    """
    extra = width - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)]) if extra > 0 else x[..., :width]


def _affine(name, inputs, outputs, draw):
    shape, bound = (inputs[1], outputs[1]), inputs[1] ** -0.5
    return {
        name: Declaration(shape, (inputs[0], outputs[0]), (inputs[0],), draw=functools.partial(draw, bound)),
        f"{name}_bias": Declaration(shape[1:], (outputs[0],), draw=_bias(draw, bound)),
    }


def _bias(draw, bound):
    return functools.partial(draw, bound) if draw is _as_torch else None


def _as_torch(bound, key, shape):
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _identity(bound, key, shape):
    del bound, key
    return jnp.eye(*shape, dtype=jnp.float32)


def _nothing(bound, key, shape):
    del bound, key
    return jnp.zeros(shape, jnp.float32)


_DRAWS = {"linear": _as_torch, "linear_identity": _identity, "linear_skip": _nothing}
