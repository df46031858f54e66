"""What linear layers multiply, on integer grids that were fixed beforehand on other text."""

import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.errors import UserError
from jaxllm.quantize.rounding import absmax

# The input of query, key and value; of attention's output; of the MLP's in and gate; of its out.
LINEAR_INPUTS = ("attn_in", "head_out", "mlp_in", "mlp_hidden")


def activation_ranges(
    config: models.ModelConfig, params: dict, batches: Iterable[Mapping[str, jax.Array]]
) -> dict[str, jax.Array]:
    """Return the largest magnitude of every channel that a linear layer reads: {site: [L, channels...]}.

    Args:
      config: the model.
      params: its parameters, as they are before quantisation.
      batches: {"tokens": int [B, T], "segment_ids": [B, T] optional}: text to calibrate on, which should
        not be the text to score.
    """

    ranges = None
    for batch in batches:
        if 0 in batch["tokens"].shape:
            raise UserError(f"a batch of shape {batch['tokens'].shape} holds no token; leave it out")
        seen = _largest(config, params, batch["tokens"], batch.get("segment_ids"))
        ranges = seen if ranges is None else jax.tree.map(jnp.maximum, ranges, seen)
    if ranges is None:
        raise ValueError("activation_ranges was given no batches; give at least one")
    return ranges


@functools.partial(jax.jit, static_argnums=0)
def _largest(config, params, tokens_BT, segment_ids_BT):
    def of_layer(captured, layer):
        return {site: jnp.max(jnp.abs(value), axis=(0, 1)) for site, value in captured.items()}

    sites = models.Sites(capture=LINEAR_INPUTS, keep=of_layer)
    return models.capture(config, params, tokens_BT, sites, segment_ids=segment_ids_BT)[1]


def shared_ranges(ranges: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the ranges with each layer's largest in the place of every channel's: one grid for them all."""

    def share(range_L):
        largest_L = jnp.max(range_L, axis=tuple(range(1, range_L.ndim)), keepdims=True)
        return jnp.broadcast_to(largest_L, range_L.shape)

    return {site: share(range_L) for site, range_L in ranges.items()}


def quantized_activations(ranges: Mapping[str, jax.Array], bits: int) -> models.Sites:
    """Return the edits that put every linear layer's input on its grid, for `models.trunk(sites=...)`.

    Args:
      ranges: from `activation_ranges` or `shared_ranges`. What exceeds them is clipped.
      bits: of an integer on the grid.
    """

    def on_grid(range_L):
        return lambda value, layer: absmax(value, bits, range_L[layer])

    return models.Sites(edits={site: on_grid(range_L) for site, range_L in ranges.items()})
