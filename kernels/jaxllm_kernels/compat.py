"""What differs between the versions of jax that this library supports (0.7.2 and later)."""

import jax
import jax.numpy as jnp

# Before jax 0.9 the CPU backend lacks bfloat16 x bfloat16 -> float32 with the right operand
# contracted over its last axis ("Unsupported element type for DotThunk::Execute").
_WIDEN_ON_CPU = jax.__version_info__ < (0, 9)


def dot_general_float32(left: jax.Array, right: jax.Array, dimension_numbers) -> jax.Array:
    """Return `jax.lax.dot_general`, accumulated in float32 and left there."""
    if _WIDEN_ON_CPU and jax.default_backend() == "cpu":
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jax.lax.dot_general(left, right, dimension_numbers, preferred_element_type=jnp.float32)


def shape_like(shape: tuple[int, ...], dtype, *arrays: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the type of a kernel's output, which inside `shard_map` varies as its inputs do."""
    axes = _varying_axes(arrays)
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    if hasattr(jax.typeof(arrays[0]), "vma"):
        return jax.ShapeDtypeStruct(shape, dtype, vma=axes)
    varying = jax.sharding.ManualAxisType(varying=axes)
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)


def varying_like(x: jax.Array, *arrays: jax.Array) -> jax.Array:
    """Mark a constant as varying over the axes of `shard_map` over which some arrays vary.

    A loop's first carry must vary as the later ones do.
    """
    missing = tuple(sorted(_varying_axes(arrays) - _varying_axes((x,))))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)


def _varying_axes(arrays) -> frozenset[str]:
    kinds = [jax.typeof(x) for x in arrays if x is not None]
    return frozenset().union(*(t.vma if hasattr(t, "vma") else t.manual_axis_type.varying for t in kinds))


def varying_axes(*arrays: jax.Array) -> frozenset[str]:
    """Return the mesh axes of `shard_map` over which any of the arrays varies; outside it, none."""
    return _varying_axes(arrays)


def types_say_shardings() -> bool:
    """Return whether the mesh in force has Explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and jax.sharding.AxisType.Explicit in mesh.axis_types


def sharded_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Give x the sharding that `like` has in its type, on a mesh with Explicit axes."""
    return jax.sharding.reshard(x, jax.typeof(like).sharding) if types_say_shardings() else x
