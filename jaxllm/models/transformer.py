"""The transformer as pure functions: tokens to hidden states, with a cache or without."""

import functools

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError
from jaxllm.models.architecture import capture, decode, embed_tokens, run_span
from jaxllm.models.attention import attention_block
from jaxllm.models.cache import LayerCache, place_tokens, where_it_fits
from jaxllm.models.config import ModelConfig, check_decodes, check_length
from jaxllm.models.dropout import dropout, fold_in
from jaxllm.models.ids import check_ids, check_tokens
from jaxllm.models.layers import run_layers
from jaxllm.models.look_up import look_up
from jaxllm.models.mlp import mlp_block
from jaxllm.models.norms import normalize
from jaxllm.models.parameters import axes
from jaxllm.models.rotary import rotary_table
from jaxllm.models.sites import Sites, Tap
from jaxllm.parallel import constrain


@capture.register
def _capture(
    config: ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    sites: Sites | None,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    token_types: jax.Array | None = None,
    microbatches: int = 1,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    _check_inputs(config, tokens_BT)
    if token_types is not None:
        check_ids(token_types, config.num_token_types, "token_types")
    positions_BT = _checked_positions(config, tokens_BT, positions, segment_ids)
    hidden_BTD, captured, _ = _run(
        config, params, tokens_BT, positions_BT, segment_ids, sites, None, microbatches, key, token_types
    )
    if positions is not None:
        hidden_BTD = where_it_fits(config, hidden_BTD, positions_BT)
    return hidden_BTD, captured


@decode.register
def _decode(
    config: ModelConfig, params: dict, tokens_BT: jax.Array, cache: dict, *, mask_BT: jax.Array | None = None
) -> tuple[jax.Array, dict]:
    check_decodes(config)
    _check_inputs(config, tokens_BT)
    T = tokens_BT.shape[1]
    if T > cache["valid"].shape[1]:
        raise UserError(f"{T} tokens do not fit a cache of {cache['valid'].shape[1]}")
    if mask_BT is None:
        check_length(config, T)
        mask_BT = jnp.ones(tokens_BT.shape[:2], bool)
    positions_BT, cache = place_tokens(cache, mask_BT)
    hidden_BTD, _, written = _run(config, params, tokens_BT, positions_BT, None, None, cache)
    hidden_BTD = where_it_fits(config, hidden_BTD, positions_BT, cache)
    return hidden_BTD, written | {"length": cache["length"] + T}


@run_span.register
def _run_span(
    config: ModelConfig,
    params: dict,
    x_BTD: jax.Array,
    span: range,
    cache: dict | None = None,
    *,
    mask_BT: jax.Array | None = None,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    sites: Sites | None = None,
    microbatches: int = 1,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict | None]:
    if cache is None:
        positions = _checked_positions(config, x_BTD, positions, segment_ids)
        placed = None
    else:
        mask_BT = jnp.ones(x_BTD.shape[:2], bool) if mask_BT is None else mask_BT
        positions, placed = place_tokens(cache, mask_BT)
    x_BTD, _, written = _run(
        config, params, x_BTD, positions, segment_ids, sites, placed, microbatches, key, span=span
    )
    return x_BTD, written and cache | {name: written[name] for name in LayerCache.NAMES}


@embed_tokens.register
def _embed_tokens(config: ModelConfig, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    x_BTD = look_up(table_VD, ("vocab", "embed"), tokens_BT, config.dtype)
    if config.scale_embeddings:  # by a number of their type, as transformers rounds it
        x_BTD = x_BTD * jnp.asarray(config.embed_dim**0.5, x_BTD.dtype)
    return x_BTD


def _checked_positions(config, tokens_BT, positions, segment_ids):
    if positions is not None:
        if config.most_positions is not None:
            check_ids(positions, config.most_positions, "positions")
        return positions
    check_length(config, tokens_BT.shape[1])
    return _positions(tokens_BT, segment_ids)


def _check_inputs(config, tokens_BT):
    if tokens_BT.ndim != 3:
        check_tokens(tokens_BT, config.known_vocab_size)
    elif tokens_BT.shape[2] != config.embed_dim or not jnp.issubdtype(tokens_BT.dtype, jnp.floating):
        raise UserError(
            f"vectors in place of tokens are {tokens_BT.dtype}{list(tokens_BT.shape)}; give floats "
            f"[B, T, {config.embed_dim}], as embed_dim says"
        )


def _positions(tokens_BT, segment_ids):
    index_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape[:2])
    if segment_ids is None:
        return index_BT
    starts_BT = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    return index_BT - jax.lax.cummax(jnp.where(starts_BT, index_BT, 0), axis=1)


def _run(
    config, params, tokens_BT, positions_BT, segment_ids_BT, sites, cache, microbatches=1, key=None,
    types_BT=None, span=None,
):  # fmt: skip
    """Embed, scan the layers, normalise; return (hidden_BTD, captured, cache).

    With `span`, only those of the three steps that belong to these layers.
    """
    outer = Tap(sites)
    key = key if config.dropout else None
    span = range(config.num_layers) if span is None else span
    x_BTD = tokens_BT
    if span.start == 0:
        with jax.named_scope("embed"):
            x_BTD = outer("embed", _embed(config, params.get("embed"), tokens_BT, positions_BT, types_BT))
            x_BTD = dropout(x_BTD, config.dropout, fold_in(key, config.num_layers))
    layer = functools.partial(_layer, config, sites=sites, relative_RD=_relative(config, params.get("embed")))
    rows = dict(rotary=_rotary_tables(config, positions_BT), segment_ids_BT=segment_ids_BT, key=key)
    x_BTD, captured, cache = run_layers(
        config, layer, params["layers"], x_BTD, cache, LayerCache, _windows(config, span), microbatches,
        first=span.start, **rows,
    )  # fmt: skip
    if config.norm_place != "post" and span.stop == config.num_layers:
        x_BTD = normalize(x_BTD, params["final_norm"], config.norm, config.norm_eps)
    hidden_BTD = outer("final", x_BTD)
    return hidden_BTD, outer.captured | captured, cache


def _windows(config, span):
    """Return the repeating pattern of the windows of a span's layers."""
    period, start = len(config.windows), span.start % len(config.windows)
    if len(span) % period:
        return tuple(config.windows[layer % period] for layer in span)
    return (*config.windows[start:], *config.windows[:start])


def _rotary_tables(config, positions_BT):
    """Return () without rotation, else the table of all layers, or that of those with a window last."""
    if config.position != "rotary":
        return ()
    table = rotary_table(positions_BT, config.rotary_dim, config.rope_theta, config.rope_scaling)
    if config.windowed_rope_theta is None:
        return (table,)
    return table, rotary_table(positions_BT, config.rotary_dim, config.windowed_rope_theta)


def _relative(config, params):
    if config.position != "disentangled":
        return None
    relative_RD = params["relative"].astype(config.dtype)
    if config.disentangled.norm:
        relative_RD = normalize(relative_RD, params["relative_norm"], config.norm, config.norm_eps)
    return relative_RD


def _embed(config, params, tokens_BT, positions_BT, types_BT):
    names = axes(config)["embed"]
    if tokens_BT.ndim == 3:
        x_BTD = tokens_BT.astype(config.dtype)
    else:
        x_BTD = embed_tokens(config, params["tokens"], tokens_BT)
    if config.position == "learned":
        x_BTD = x_BTD + look_up(params["positions"], names["positions"], positions_BT, config.dtype)
    if config.num_token_types:
        types_BT = jnp.zeros(tokens_BT.shape[:2], jnp.int32) if types_BT is None else types_BT
        x_BTD = x_BTD + look_up(params["token_types"], names["token_types"], types_BT, config.dtype)
    if config.embed_norm:
        x_BTD = normalize(x_BTD, params["norm"], config.norm, config.norm_eps)
    return constrain(x_BTD, "batch", "sequence", None)


def _layer(
    config, params, x_BTD, index, window, cache, *, rotary, segment_ids_BT, sites, key=None, relative_RD=None
):  # fmt: skip
    """Run one layer; return (x_BTD, captured, cache)."""
    tap = Tap(sites, index)
    attn_key, attn_out_key, mlp_out_key = (fold_in(fold_in(key, index), place) for place in range(3))

    post = config.norm_place == "post"

    def read(x_BTD, name):
        # What products take: all tokens of a sequence. Of the stream each tensor shard has a part of them.
        if not post:
            x_BTD = normalize(x_BTD, params[name], config.norm, config.norm_eps)
        return constrain(x_BTD, "batch", None, None)

    def add(x_BTD, out_BTD, name):
        x_BTD = x_BTD + out_BTD
        if post:
            x_BTD = normalize(x_BTD, params[name], config.norm, config.norm_eps)
        return constrain(x_BTD, "batch", "sequence", None)

    x_BTD = tap("resid_pre", x_BTD)
    attn_in_BTD = tap("attn_in", read(x_BTD, "attn_norm"))
    with jax.named_scope("attention"):
        attn_out_BTD, cache = attention_block(
            config,
            params["attn"],
            attn_in_BTD,
            tap,
            window=window,
            rotary=rotary[-1 if window else 0] if rotary else None,
            segment_ids_BT=segment_ids_BT,
            cache=cache,
            key=attn_key,
            relative_RD=relative_RD,
        )
    attn_out_BTD = dropout(attn_out_BTD, config.dropout, attn_out_key)
    mid_BTD = tap("resid_mid", add(x_BTD, attn_out_BTD, "attn_norm"))
    mlp_in_BTD = x_BTD if config.parallel_residual else mid_BTD
    mlp_in_BTD = tap("mlp_in", read(mlp_in_BTD, "mlp_norm"))
    with jax.named_scope("mlp"):
        mlp_out_BTD = mlp_block(config, params["mlp"], mlp_in_BTD, tap)
    mlp_out_BTD = dropout(mlp_out_BTD, config.dropout, mlp_out_key)
    x_BTD = tap("resid_post", add(mid_BTD, mlp_out_BTD, "mlp_norm"))
    return x_BTD, tap.kept(), cache
