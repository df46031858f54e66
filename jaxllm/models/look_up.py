"""Rows of a table, whichever way it is split over devices."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.parallel import mesh_axes, on_shards, spread


def look_up(table_VD: jax.Array, axes: Sequence[str | None], ids_BT: jax.Array, dtype: str) -> jax.Array:
    """Return a table's rows, [B, T, D] in a dtype: cast once they are found, as a cast table costs more.

    On a mesh each device looks up its part of the width, for all rows of the batch that only that axis
    splits; to bring each device its rows' whole width is the caller's. Said device by device, since a
    compiler may gather the table instead, and sum a gradient of all of it.

    Args:
      table_VD: a row for each id.
      axes: logical names of the table's axes.
      ids_BT: int [B, T].
      dtype: of the result.
    """
    spec = spread(axes, table_VD.shape)
    if spec is None:
        return table_VD[ids_BT].astype(dtype)
    lookup = spread(("lookup_batch", None), ids_BT.shape)
    row_axes = mesh_axes(spec[0])

    def on_part(table_VD, ids_BT):
        if not row_axes:
            return table_VD[ids_BT].astype(dtype)
        ids_BT = ids_BT - len(table_VD) * jax.lax.axis_index(row_axes)
        mine = (ids_BT >= 0) & (ids_BT < len(table_VD))
        x_BTD = jnp.where(mine[..., None], table_VD[jnp.where(mine, ids_BT, 0)], 0)
        return jax.lax.psum(x_BTD.astype(dtype), row_axes)

    out = PartitionSpec(*lookup, spec[1])
    return on_shards(on_part, (spec, lookup), out)(table_VD, ids_BT)
