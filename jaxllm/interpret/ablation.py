"""Taking attention heads out of a model: with all that follows, or with its attention patterns kept."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.interpret.edits import check_place


def hidden_without_head(
    config: models.ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    layer: int | jax.Array,
    head: int | jax.Array,
    *,
    keep_patterns: bool = False,
) -> jax.Array:
    """Return the hidden states [B, T, D] of a model without one head's output.

    With `keep_patterns` every head of every layer attends as in the whole model: what is taken out is the
    head's own contribution, not what later heads would make of its absence. Holds [L, B, H, T, T] then.

    Args:
      config: the model.
      params: its parameters, layers stacked.
      tokens_BT: int [B, T].
      layer: from 0; it and the head may be traced: one program for all heads.
      head: from 0.
      keep_patterns: force attention weights to those of the whole model.
    """
    if not isinstance(layer, jax.core.Tracer) and not isinstance(head, jax.core.Tracer):
        check_place("layer", int(layer), config.num_layers)
        check_place("head", int(head), config.num_heads)
    this_H1 = (jnp.arange(config.num_heads, dtype=jnp.int32) == head)[:, None]
    edits: dict[str, Any] = {
        "head_out": lambda value, at: jnp.where((at == layer) & this_H1, jnp.zeros((), value.dtype), value)
    }
    if keep_patterns:
        sites = models.Sites(capture=("attn_probs",))
        probs_LBHTT = models.capture(config, params, tokens_BT, sites)[1]["attn_probs"]
        edits["attn_probs"] = lambda value, at: probs_LBHTT[at]
    return models.capture(config, params, tokens_BT, models.Sites(edits=edits))[0]
