"""Run a function on each device's part of its arguments."""

from collections.abc import Callable, Sequence

import jax

from jaxllm.parallel.rules import RULES, partition_spec


def spread(axes: Sequence[str | None], shape: Sequence[int]) -> jax.sharding.PartitionSpec | None:
    """Return the spec of an array of these logical axes on the mesh in force; None without one.

    Inside `jax.shard_map` the arrays are shards already, so there is none either.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or jax.sharding.AxisType.Manual in mesh.axis_types:
        return None
    return partition_spec(axes, shape, mesh, RULES)


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes that one entry of a PartitionSpec names."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def on_shards(function: Callable, in_specs, out_specs) -> Callable:
    """Return `jax.shard_map` of the function over the mesh in force.

    A compiler that splits programs over devices cannot look into a kernel; this splits around it.
    Arguments that are None pass through.

    Args:
      function: takes and returns arrays (or pytrees of them).
      in_specs: one PartitionSpec (or pytree) an argument; anything for an argument that is None.
      out_specs: the same for what it returns.
    """

    def call(*arguments):
        given = [i for i, x in enumerate(arguments) if x is not None]

        def on_part(*parts):
            whole = list(arguments)
            for i, part in zip(given, parts, strict=True):
                whole[i] = part
            return function(*whole)

        specs = tuple(in_specs[i] for i in given)
        mapped = jax.shard_map(on_part, in_specs=specs, out_specs=out_specs)
        return mapped(*(arguments[i] for i in given))

    return call
