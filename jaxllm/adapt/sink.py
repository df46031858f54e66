"""A key without a value for every head of a pretrained model, so that it may attend to nothing."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError
from jaxllm.models import LanguageModel, Sites, capture, check_transformer


def add_sink(config: LanguageModel, params: dict, tokens_BT: jax.Array) -> tuple[LanguageModel, dict]:
    """Return the model with a learned sink in each head, which takes half of what its first token was given.

    Its logit, a parameter of its own, begins at the mean logit of the first token on some text: where heads
    rested on that token, they rest on nothing as much. What is said changes, so train on. For softmax-1 (a
    logit of 0 in every head, Kaul et al., arXiv 2410.17174) `dataclasses.replace(config, sink_logit=0.0)` is
    all it takes.

    Args:
      config: the model, with the softmax that it was trained with.
      params: its parameters, layers stacked.
      tokens_BT: texts, each from its first token on, without padding. Queries that see that token alone, or
        do not see it, are left out of the mean.

    Raises:
      UserError: no transformer; it has a sink; the text has no query that chooses.

    Examples:
      >>> from jaxllm import models
      >>> config = models.get_preset("gpt2-nano")
      >>> config, params = add_sink(config, models.init(config, jax.random.key(0)), jnp.zeros((1, 8), int))
      >>> config.sink_logit, params["layers"]["attn"]["sink"].shape
      ('learned', (2, 2))
    """
    check_transformer(config, "a learned sink")
    if config.sink_logit != -math.inf:
        raise UserError(f"the model has a sink, sink_logit={config.sink_logit}; give one of plain softmax")
    if tokens_BT.ndim != 2 or len(tokens_BT) < 1 or tokens_BT.shape[1] < 2:
        raise UserError(
            f"tokens of shape {tokens_BT.shape} hold no query that chooses; give [B, T], with T above 1"
        )
    attention = params["layers"]["attn"] | {"sink": _first_logits(config, params, tokens_BT)}
    params = params | {"layers": params["layers"] | {"attn": attention}}
    return dataclasses.replace(config, sink_logit="learned"), params


@functools.partial(jax.jit, static_argnums=0)
def _first_logits(config, params, tokens_BT):
    """Return the mean score of the first key, over queries that see it beside others, [L, H]."""

    def first_logits(captured, layer):
        scores_BHT = captured["attn_scores"][..., 0]
        window = jnp.array(config.windows, jnp.int32)[layer % len(config.windows)]
        at_T = jnp.arange(scores_BHT.shape[-1], dtype=jnp.int32)
        sees_T = (at_T > 0) & ((window == 0) | (at_T < window))
        sums_H = jnp.sum(scores_BHT.astype(jnp.float32).mean(axis=0), axis=-1, where=sees_T)
        return {"mean": sums_H / jnp.maximum(jnp.sum(sees_T), 1)}

    sites = Sites(capture=("attn_scores",), keep=first_logits)
    return capture(config, params, tokens_BT, sites)[1]["mean"]
