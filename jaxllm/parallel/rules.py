"""Logical axis names to mesh axes: the one table that decides how arrays are sharded."""

from collections.abc import Mapping

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.errors import UserError

# Parameters and activations name their axes; this table places them. A name that is absent, or
# maps to None, is replicated. "sequence" is the tokens' axis of the residual stream between a layer's
# blocks, which norms and sums look at a token at a time (Korthikanti et al., arXiv 2205.05198).
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "lookup_batch": "data",
    "sequence": "tensor",
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def partition_spec(axes, shape, mesh, rules=RULES) -> PartitionSpec:
    """Return the PartitionSpec of an array whose axes have these logical names.

    A mesh axis is used at most once an array (a second use raises), and is left out where it does
    not divide the dimension: a 50,257-word vocabulary stays whole on a 2-way tensor axis.

    Args:
      axes: one logical name (or None) a dimension.
      shape: the array's shape.
      mesh: a `jax.sharding.Mesh` or `AbstractMesh`.
      rules: logical name -> mesh axis, several mesh axes, or None.

    Raises:
      UserError: two of the axes map to the same mesh axis.

    Examples:
      >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> tuple(partition_spec(("embed", "mlp"), (64, 256), mesh))
      ('fsdp', None)
    """
    used: dict[str, str] = {}
    spec = []
    for name, size in zip(axes, shape, strict=True):
        target = rules.get(name) if name is not None else None
        names = (target,) if isinstance(target, str) else tuple(target or ())
        kept, ways = [], 1
        for mesh_axis in names:
            if mesh_axis not in mesh.shape:
                continue
            if mesh_axis in used:
                raise UserError(
                    f"axes {tuple(axes)}: '{name}' and '{used[mesh_axis]}' both map to mesh axis "
                    f"'{mesh_axis}'; rename one of them or change the rules"
                )
            if size % (ways * mesh.shape[mesh_axis]) == 0:
                kept.append(mesh_axis)
                used[mesh_axis] = name
                ways *= mesh.shape[mesh_axis]
        spec.append(None if not kept else kept[0] if len(kept) == 1 else tuple(kept))
    return PartitionSpec(*spec)


def shardings(axes, shapes, mesh, rules=RULES):
    """Return a NamedSharding for each array of a pytree.

    Args:
      axes: pytree of tuples of logical names, structured like `shapes`.
      shapes: pytree of arrays or ShapeDtypeStructs.
      mesh: the mesh to place them on.
      rules: see `partition_spec`.
    """
    return jax.tree.map(
        lambda array, names: NamedSharding(mesh, partition_spec(names, array.shape, mesh, rules)),
        shapes,
        axes,
    )


def constrain(x, *axes, rules=RULES):
    """Constrain an activation's sharding by logical names; do nothing outside a mesh or in `jax.shard_map`.

    The mesh is the one of `jax.set_mesh`. Axes of size 1 cost nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or jax.sharding.AxisType.Manual in mesh.axis_types:
        return x
    spec = partition_spec(axes, x.shape, mesh, rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
