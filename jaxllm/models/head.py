"""What hidden states become, whatever architecture they are of: logits of the vocabulary, or of labels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxllm_kernels.compat import dot_general_float32

from jaxllm.axis_names import AxisNames
from jaxllm.models import grouped_head
from jaxllm.models.architecture import trunk
from jaxllm.models.config import LanguageModel
from jaxllm.models.declarations import declare_head
from jaxllm.models.linear import linear
from jaxllm.models.mlp import ACTIVATION_FUNCTIONS
from jaxllm.models.norms import normalize
from jaxllm.models.parameters import axes
from jaxllm.models.sites import Sites


def logits(config: LanguageModel, params: dict, hidden_BTD: jax.Array) -> jax.Array:
    """Return the head's float32 logits of hidden states: [..., V].

    Of a head of groups they are log-probabilities; see `grouped_head.log_probs` for what they cost. Of a head
    of labels they are [B, T, labels], or of texts [B, labels], from the hidden state of each one's first
    token.
    """
    if config.vocab_groups is not None:
        return grouped_head.log_probs(config, params, hidden_BTD)
    if config.labels:
        return _label_logits(config, params["head"], hidden_BTD)
    hidden_BTD = head_input(config, params, hidden_BTD)
    weights, names = head_weights(config, params)
    vocab_axis, weights = names.index("vocab"), weights.astype(hidden_BTD.dtype)
    dims = ((hidden_BTD.ndim - 1,), (1 - vocab_axis,))
    if vocab_axis == 0 and hidden_BTD.ndim == 2:
        # One row a sequence: twice as fast on a CPU with the table on the left.
        return dot_general_float32(weights, hidden_BTD, (dims[::-1], ((), ()))).T
    return dot_general_float32(hidden_BTD, weights, (dims, ((), ())))


def apply(
    config: LanguageModel,
    params: dict,
    tokens_BT: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    token_types: jax.Array | None = None,
    sites: Sites | None = None,
    microbatches: int = 1,
    key: jax.Array | None = None,
    context: Any = None,
) -> jax.Array:
    """Return the float32 logits of every position, [B, T, V], or of labels; see `trunk` for the arguments.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxllm import models
      >>> config = models.get_preset("llama-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> models.apply(config, params, jnp.zeros((2, 7), int)).shape
      (2, 7, 256)
    """
    hidden_BTD = trunk(
        config, params, tokens_BT, positions=positions, segment_ids=segment_ids, token_types=token_types,
        sites=sites, microbatches=microbatches, key=key, context=context,
    )  # fmt: skip
    return logits(config, params, hidden_BTD)


@functools.singledispatch
def head_weights(config: LanguageModel, params: dict) -> tuple[jax.Array, AxisNames]:
    """Return (a dense head's weights, the names of their axes); a bias is one more channel."""
    group, name = ("embed", "tokens") if config.tie_embeddings else ("head", "kernel")
    weights, names = params[group][name], axes(config)[group][name]
    if config.head == "masked":
        bias = jnp.expand_dims(params["head"]["bias"], 1 - names.index("vocab"))
        weights = jnp.concatenate([weights, bias], axis=1 - names.index("vocab"))
    return weights, names


@functools.singledispatch
def head_input(config: LanguageModel, params: dict, hidden_BTD: jax.Array) -> jax.Array:
    """Return what a dense head multiplies: hidden states, or what a masked head makes of them, and a 1."""
    if config.head != "masked":
        return hidden_BTD
    head, x_BTD, declared = params["head"], hidden_BTD, declare_head(config)["head"]
    if x_BTD.ndim != 3:
        x_BTD = x_BTD.reshape(1, -1, config.embed_dim)
    x_BTD = ACTIVATION_FUNCTIONS[config.activation](linear(x_BTD, head, declared, "transform"))
    x_BTD = normalize(x_BTD, head["norm"], config.norm, config.norm_eps).reshape(hidden_BTD.shape)
    return jnp.concatenate([x_BTD, jnp.ones_like(x_BTD[..., :1])], axis=-1)


def _label_logits(config, head, hidden_BTD):
    declared = declare_head(config)["head"]
    if config.head == "token_labels":
        return linear(hidden_BTD, head, declared, "token_labels").astype(jnp.float32)
    pooled_B1D = linear(hidden_BTD[:, :1], head, declared, "pooler")
    pooled_B1D = ACTIVATION_FUNCTIONS[config.label_activation](pooled_B1D)
    return linear(pooled_B1D, head, declared, "text_labels")[:, 0].astype(jnp.float32)
