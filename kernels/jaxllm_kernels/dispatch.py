"""Which implementation of an operation runs: the one asked for, or the best for the platform."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping

import jax

# Platform, as jax.lax.platform_dependent names it, to the implementation written for it.
_WRITTEN_FOR = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}


def dispatch(
    operation: str,
    implementation: str | None,
    candidates: Mapping[str, Callable],
    cannot: Mapping[str, str | None],
    *operands,
):
    """Call one of the candidates with the operands and return what it returns.

    With `implementation=None` the choice falls when the program is lowered, so the same traced
    function compiles for a machine that is not here. Call it inside the rules of a `custom_vjp`,
    not under one that differentiates each candidate: then all of them save the same residuals.

    Args:
      operation: its name, for messages.
      implementation: a key of candidates, or None for the platform's best.
      candidates: {"xla": function, "pallas_tpu": function, ...}; "xla" must be there.
      cannot: why a candidate cannot run this call, in words; absent or None if it can.
      *operands: arrays (pytrees); everything static belongs into the candidates.

    Raises:
      ValueError: an unknown implementation, or one that cannot run this call.
    """
    if automatic_devices() > 1:
        reason = "its arrays are spread over a mesh; a kernel needs shard_map for that"
        cannot = dict.fromkeys(_WRITTEN_FOR.values(), reason)
    if implementation is not None:
        if implementation not in candidates:
            raise ValueError(
                f"{operation}: implementation '{implementation}' is not one of {tuple(candidates)}"
            )
        if cannot.get(implementation):
            raise ValueError(
                f"{operation}: {implementation} cannot run this: {cannot[implementation]}; "
                "leave implementation=None to fall back to xla"
            )
        return candidates[implementation](*operands)
    chosen = {}
    for platform, name in _WRITTEN_FOR.items():
        if name not in candidates or (platform == "cuda" and not _has_triton()):
            continue
        if cannot.get(name):
            if jax.default_backend() == {"cuda": "gpu"}.get(platform, platform):
                _warn_once(f"{operation}: falling back to xla, since {cannot[name]}")
            continue
        chosen[platform] = candidates[name]
    if not chosen:
        return candidates["xla"](*operands)
    return jax.lax.platform_dependent(*operands, default=candidates["xla"], **chosen)


def automatic_devices() -> int:
    """Return over how many devices the compiler may spread these arrays, as far as is known."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.shape.values(), mesh.axis_types, strict=True)
    return math.prod(size for size, kind in kinds if kind != jax.sharding.AxisType.Manual)


@functools.cache
def _has_triton() -> bool:
    """Return False on a GPU before Ampere, for which Pallas has no compiler."""
    if jax.default_backend() != "gpu":
        return True  # compiling for a GPU that is not here
    return float(jax.local_devices()[0].compute_capability) >= 8.0


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
