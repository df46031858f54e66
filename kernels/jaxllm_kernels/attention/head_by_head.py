"""Attention of one head after another, for a CPU."""

import jax
import jax.numpy as jnp

from jaxllm_kernels.compat import varying_like

SHORTEST_TEXT = 256  # whose heads are gone over one after another


def head_by_head(attend, arrays, axes, results_axes, segment_ids_BT, mask_BTS):
    """Return what attend does, computed for one row of the batch and one key head after another on a CPU.

    The scores then stay in its cache, and are held for one head at a time. A head is cut out of the arrays
    as they lie, and its results are written where they belong, so that no array is transposed as a whole.
    Not for short texts, where the loop costs more than it saves; not in a mesh, where batch and heads are
    spread over devices; not on an accelerator, which one head would not fill.

    Args:
      attend: (*arrays, segment_ids_BT, mask_BTS) -> results, for any number of rows and key heads.
      arrays: queries [B, T, H, K], keys [B, S, G, K], and others of H or G heads, or None.
      axes: which axis of each array is its heads; 0: it has no axis for the batch before it.
      results_axes: the same of each result.

    Returns:
      A tuple of attend's results.
    """
    (B, T), (S, G) = arrays[0].shape[:2], arrays[1].shape[1:3]

    def all_at_once(*arrays):
        return attend(*arrays, segment_ids_BT, mask_BTS)

    if B * G == 1 or min(T, S) < SHORTEST_TEXT or jax.sharding.get_abstract_mesh().size > 1:
        return all_at_once(*arrays)

    def place(row, group, shape, axis):
        """Return where one head's part of an array starts, and the part's shape."""
        starts, sizes = [jnp.int32(0)] * len(shape), list(shape)
        sizes[axis] //= G
        starts[axis] = group * sizes[axis]
        if axis:
            starts[0], sizes[0] = row, 1
        return starts, sizes

    def in_turn(*arrays):
        def one_head(results, index):
            row, group = jax.lax.div(index, jnp.int32(G)), jax.lax.rem(index, jnp.int32(G))
            parts = (
                x if x is None else jax.lax.dynamic_slice(x, *place(row, group, x.shape, axis))
                for x, axis in zip(arrays, axes, strict=True)
            )
            of_row = (
                x if x is None or len(x) == 1 else jax.lax.dynamic_slice_in_dim(x, row, 1)
                for x in (segment_ids_BT, mask_BTS)
            )
            written = tuple(
                jax.lax.dynamic_update_slice(whole, part, place(row, group, whole.shape, axis)[0])
                for whole, part, axis in zip(results, attend(*parts, *of_row), results_axes, strict=True)
            )
            return written, None

        shapes = jax.eval_shape(all_at_once, *arrays)
        empty = tuple(varying_like(jnp.zeros(x.shape, x.dtype), *arrays) for x in shapes)
        return jax.lax.scan(one_head, empty, jnp.arange(B * G, dtype=jnp.int32))[0]

    return jax.lax.platform_dependent(*arrays, cpu=in_turn, default=all_at_once)
