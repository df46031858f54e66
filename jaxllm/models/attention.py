"""The attention block: projections, rotary, attention over the text or a cache, output."""

import jax
from jaxllm_kernels import attention as kernel

from jaxllm.models.attend import attend
from jaxllm.models.cache import LayerCache
from jaxllm.models.config import ModelConfig
from jaxllm.models.declarations import declare_attention
from jaxllm.models.disentangled import position_scores
from jaxllm.models.dropout import dropout, dropped_attention
from jaxllm.models.linear import linear, linears
from jaxllm.models.norms import normalize
from jaxllm.models.rotary import rotate
from jaxllm.models.sites import Tap
from jaxllm.parallel import constrain


def attention_block(
    config: ModelConfig,
    params: dict,
    x_BTD: jax.Array,
    tap: Tap,
    *,
    window: int,
    rotary: tuple[jax.Array, jax.Array] | None = None,
    segment_ids_BT: jax.Array | None = None,
    cache: LayerCache | None = None,
    key: jax.Array | None = None,
    relative_RD: jax.Array | None = None,
) -> tuple[jax.Array, LayerCache | None]:
    """Return what attention adds to the residual stream, [B, T, D], and the cache written to.

    Args:
      params: one layer's {"query": [D, H, K], "key", "value": [D, G, K], "out": [H, K, D], biases,
        "sink": [H] if learned, norms of each head's query and key and of the output if it has them}.
      x_BTD: the normed residual stream, in `config.dtype`.
      window: how many positions back a query sees, itself included; 0: all.
      rotary: cosines and sines of the tokens' positions.
      segment_ids_BT: documents that must not see each other.
      cache: keys and values of earlier tokens; the new ones are written into it.
      key: draws the probabilities that `config.dropout` drops, of text without a cache; None: none.
      relative_RD: the table of relative positions, if they have vectors.
    """
    declared = declare_attention(config)
    query_BTHK, key_BTGK, value_BTGK = linears(x_BTD, params, declared, "query", "key", "value")
    if config.qk_norm:
        query_BTHK = normalize(query_BTHK, params["query_norm"], config.norm, config.norm_eps)
        key_BTGK = normalize(key_BTGK, params["key_norm"], config.norm, config.norm_eps)
    if rotary is not None:
        query_BTHK, key_BTGK = rotate(query_BTHK, rotary), rotate(key_BTGK, rotary)
    query_BTHK = tap("query", constrain(query_BTHK, "batch", None, "heads", None))
    key_BTGK = tap("key", constrain(key_BTGK, "batch", None, "kv_heads", None))
    value_BTGK = tap("value", constrain(value_BTGK, "batch", None, "kv_heads", None))

    options = dict(
        scale=config.score_scale,
        causal=config.causal and cache is None,
        window=window if cache is None else None,
        segment_ids_BT=segment_ids_BT,
        mask_BTS=None,
        sink=params["sink"] if config.sink_logit == "learned" else config.sink_logit,
    )
    if cache is not None:
        # Slots are not positions once text is padded: the cache knows what each query may see.
        cache = cache.write(key_BTGK, value_BTGK)
        key_BTGK, value_BTGK = cache.key_BSGK, cache.value_BSGK
        options["mask_BTS"] = cache.visible(x_BTD.shape[1], window)
    if relative_RD is not None or tap.wants("attn_scores", "attn_probs"):
        bias_BHTS = 0.0
        if relative_RD is not None:
            positions = (config.disentangled, params, declared, query_BTHK, key_BTGK, relative_RD)
            bias_BHTS = options["scale"] * position_scores(*positions)
        head_out_BTHK = _explicit(
            query_BTHK, key_BTGK, value_BTGK, bias_BHTS, tap, config.dropout, key, **options
        )
    elif key is not None:
        head_out_BTHK = dropped_attention(query_BTHK, key_BTGK, value_BTGK, config.dropout, key, **options)
    elif cache is not None and cache.shared:
        head_out_BTHK = cache.attend(
            query_BTHK,
            window,
            scale=options["scale"],
            sink=options["sink"],
            implementation=config.attention_implementation,
        )
    else:
        head_out_BTHK = attend(
            query_BTHK,
            key_BTGK,
            value_BTGK,
            implementation=config.attention_implementation,
            **options,
        )
    head_out_BTHK = tap("head_out", constrain(head_out_BTHK, "batch", None, "heads", None))
    out_BTD = linear(head_out_BTHK, params, declared, "out")
    if config.norm_place == "sandwich":
        out_BTD = normalize(out_BTD, params["out_norm"], config.norm, config.norm_eps)
    return tap("attn_out", out_BTD), cache


def _explicit(query, key, value, bias, tap: Tap, rate, drop_key, *, scale, sink, **visibility) -> jax.Array:
    """Attend with scores and probabilities in memory, so that they can be seen and edited."""
    scores_BHTS = tap("attn_scores", kernel.attention_scores(query, key, scale) + bias)
    allowed = kernel.visible(query.shape[1], key.shape[1], **visibility)
    sink_H = kernel.sink_logits(sink, query.shape[2])
    probs_BHTS = tap("attn_probs", kernel.attention_probs(scores_BHTS, allowed, sink_H))
    return kernel.mix(dropout(probs_BHTS, rate, drop_key), value, query.dtype)
