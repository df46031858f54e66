"""Hidden states to logits, whatever architecture they are of."""

import jax
from jaxllm_kernels.compat import dot_general_float32

from jaxllm.axis_names import AxisNames
from jaxllm.models import grouped_head
from jaxllm.models.architecture import trunk
from jaxllm.models.config import LanguageModel
from jaxllm.models.parameters import axes


def logits(config: LanguageModel, params: dict, hidden_BTD: jax.Array) -> jax.Array:
    """Return the head's float32 logits of hidden states: [..., V].

    Of a head of groups they are log-probabilities; see `grouped_head.log_probs` for what they cost.
    """
    if config.vocab_groups is not None:
        return grouped_head.log_probs(config, params, hidden_BTD)
    weights, names = head_weights(config, params)
    vocab_axis, weights = names.index("vocab"), weights.astype(hidden_BTD.dtype)
    dims = ((hidden_BTD.ndim - 1,), (1 - vocab_axis,))
    if vocab_axis == 0 and hidden_BTD.ndim == 2:
        # One row a sequence: twice as fast on a CPU with the table on the left.
        return dot_general_float32(weights, hidden_BTD, (dims[::-1], ((), ()))).T
    return dot_general_float32(hidden_BTD, weights, (dims, ((), ())))


def apply(config: LanguageModel, params: dict, tokens_BT: jax.Array, **options) -> jax.Array:
    """Return the float32 logits of every position, [B, T, V]; options are `trunk`'s.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxllm import models
      >>> config = models.get_preset("llama-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> models.apply(config, params, jnp.zeros((2, 7), int)).shape
      (2, 7, 256)
    """
    return logits(config, params, trunk(config, params, tokens_BT, **options))


def head_weights(config: LanguageModel, params: dict) -> tuple[jax.Array, AxisNames]:
    """Return (a dense head's weights, the names of their axes)."""
    group, name = ("embed", "tokens") if config.tie_embeddings else ("head", "kernel")
    return params[group][name], axes(config)[group][name]
