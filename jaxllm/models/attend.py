"""The attention kernel on a mesh: each device its rows of the batch and its heads."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxllm_kernels import attention as kernel

from jaxllm.parallel import mesh_axes, on_shards, spread


def attend(
    query_BTHK: jax.Array,
    key_BSGK: jax.Array,
    value_BSGK: jax.Array,
    *,
    segment_ids_BT: jax.Array | None,
    mask_BTS: jax.Array | None,
    sink: float | jax.Array | None,
    **options,
) -> jax.Array:
    """Return what `jaxllm_kernels.attention.attention` does, on whatever mesh is in force."""
    q_spec = spread(("batch", None, "heads", None), query_BTHK.shape)
    if q_spec is None:
        return kernel.attention(
            query_BTHK, key_BSGK, value_BSGK, segment_ids_BT=segment_ids_BT, mask_BTS=mask_BTS,
            sink=sink, **options,
        )  # fmt: skip
    H, G = query_BTHK.shape[2], key_BSGK.shape[2]
    kv_spec = spread(("batch", None, "kv_heads", None), key_BSGK.shape)
    if mesh_axes(kv_spec[2]) != mesh_axes(q_spec[2]):
        # Fewer key heads than parts: each query head brings its own copy along.
        key_BSGK, value_BSGK = (jnp.repeat(x, H // G, axis=2) for x in (key_BSGK, value_BSGK))
        kv_spec = q_spec
    batch = q_spec[0]
    mask_batch = batch if mask_BTS is not None and len(mask_BTS) == len(query_BTHK) else None

    def on_part(q, k, v, segments, mask, sink_H):
        return kernel.attention(
            q, k, v, segment_ids_BT=segments, mask_BTS=mask, sink=sink_H, **options
        )

    in_specs = (
        q_spec, kv_spec, kv_spec, PartitionSpec(batch, None), PartitionSpec(mask_batch, None, None),
        PartitionSpec(q_spec[2]),
    )  # fmt: skip
    sink_H = kernel.sink_logits(sink, H)
    mapped = on_shards(on_part, in_specs, q_spec)
    return mapped(query_BTHK, key_BSGK, value_BSGK, segment_ids_BT, mask_BTS, sink_H)
