"""Hybrids of models (Manticore; Roberts et al., arXiv 2406.00894): several side by side, block by block.

Each of K models is cut into N spans of layers of equal length. Block i runs span i of all models on one
stream h of the widest model's width D, and mixes what they give by weights alpha = softmax(logits[i]):

    u_m = fit_m((1 - alpha_m) A_in h + alpha_m h)        # fit_m: cut to the model's width d_m
    h'  = sum_m alpha_m ((1 - alpha_m) A_out v_m + alpha_m v_m),   v_m = span i of model m, of u_m

with affine projectors A of each block and model; vectors are padded to D with zeros. One alpha is a gate and
a weight: where it is 1, the model runs as it does alone. Tokens' vectors and the head are the models' tables
mixed by block 0's weights, so that head(h) = h W for one table W = sum_m alpha_m E_m.

    config = models.HybridConfig(parts=(gpt, mamba), blocks=2, tables="parts")
    params = pretrained_hybrid(config, [gpt_params, mamba_params], key)     # hybrid_parts.py
    config.choose((0, 1))      # block 0 runs part 0 alone, block 1 part 1: the others are not computed
"""

import functools
import operator

import jax
import jax.numpy as jnp

from jaxllm.axis_names import AxisNames
from jaxllm.errors import UserError
from jaxllm.models.architecture import cache_axes, capture, decode, embed_tokens, init_cache, run_span
from jaxllm.models.cache import cache_parts, place_tokens, where_it_fits
from jaxllm.models.config import check_length
from jaxllm.models.decoding_layout import for_decoding
from jaxllm.models.dropout import fold_in
from jaxllm.models.head import head_input, head_weights
from jaxllm.models.hybrid_config import HybridConfig, projector_sides
from jaxllm.models.ids import check_tokens
from jaxllm.models.layers_apart import is_apart
from jaxllm.models.projectors import fit, project
from jaxllm.models.sites import Sites, Tap, check_sites
from jaxllm.parallel import constrain

SITES = ("embed", "resid_pre", "resid_post", "final")  # of the common stream; its layers are the blocks


def mixture_weights(config: HybridConfig, params: dict) -> list[list[jax.Array | None]]:
    """Return each block's weights of the parts that it runs, float32 scalars; None: the only one."""
    logits_NK, weights = params["mixture"]["logits"].astype(jnp.float32), []
    for block, names in enumerate(config.running):
        alphas = jax.nn.softmax(logits_NK[block, jnp.array(names, jnp.int32)])
        weights.append([None] if len(names) == 1 else [alphas[place] for place in range(len(names))])
    return weights


def _table(config, params, part):
    """Return a part's table of tokens' vectors [V, d]."""
    if config.has_new_table(part):
        return params["tables"][str(part)]
    return params["parts"][str(part)]["embed"]["tokens"]


def _embed(config, params, tokens_BT, alphas):
    vectors = []
    for part, alpha in zip(config.running[0], alphas, strict=True):
        x_BTd = embed_tokens(config.parts[part], _table(config, params, part), tokens_BT).astype(jnp.float32)
        vectors.append(_scaled(alpha, fit(x_BTd, config.embed_dim)))
    return constrain(_sum(vectors), "batch", "sequence", None)


def _sum(terms):
    return functools.reduce(operator.add, terms)


def _scaled(alpha, x):
    return x if alpha is None else alpha.astype(x.dtype) * x


def _enter(config, projectors, h_BTD, part, alpha):
    """Return what a part's span reads of the common stream."""
    width = config.parts[part].embed_dim
    if alpha is None or projectors is None:
        return fit(h_BTD, width)
    x_BTD = h_BTD.astype(config.dtype)
    mapped = project(config.projector, projectors[str(part)]["in"], x_BTD, *projector_sides(config, part))
    return (1 - alpha) * mapped.astype(jnp.float32) + alpha * fit(h_BTD, width)


def _leave(config, projectors, v_BTd, part, alpha):
    """Return what a part's span adds to the next common stream."""
    wide_BTD = fit(v_BTd.astype(jnp.float32), config.embed_dim)
    if alpha is None or projectors is None:
        return _scaled(alpha, wide_BTD)
    v_BTd = v_BTd.astype(config.dtype)
    common, own = projector_sides(config, part)
    mapped = project(config.projector, projectors[str(part)]["out"], v_BTd, own, common)
    return alpha * ((1 - alpha) * mapped.astype(jnp.float32) + alpha * wide_BTD)


def _blocks_apart(config, params) -> dict[int, list]:
    """Return each running part's layers, block by block."""
    apart = {}
    for part in sorted({part for names in config.running for part in names}):
        layers, spans = params["parts"][str(part)]["layers"], config.spans(part)
        if config.blocks == 1:
            apart[part] = [layers]
        elif isinstance(layers, tuple):
            apart[part] = [layers[span.start : span.stop] for span in spans]
        else:  # `split`: its transpose is one concatenation, not a sum of padded stacks
            leaves, structure = jax.tree.flatten(layers)
            pieces = [jax.lax.split(w, [len(span) for span in spans]) for w in leaves]
            apart[part] = [jax.tree.unflatten(structure, one) for one in zip(*pieces, strict=True)]
    return apart


def _run(config, params, tokens_BT, sites, caches=None, key=None, **options):
    """Embed, run the blocks; return (hidden_BTD, captured, the parts' caches written to)."""
    outer, taps = Tap(sites), [Tap(sites, jnp.int32(block)) for block in range(config.blocks)]
    weights, layers = mixture_weights(config, params), _blocks_apart(config, params)
    with jax.named_scope("embed"):
        h_BTD = outer("embed", _embed(config, params, tokens_BT, weights[0]))
    caches = dict(caches or {})
    for block, (names, tap) in enumerate(zip(config.running, taps, strict=True)):
        h_BTD, left = tap("resid_pre", h_BTD), []
        projectors = params["projectors"][str(block)] if "projectors" in params else None
        for part, alpha in zip(names, weights[block], strict=True):
            with jax.named_scope(f"part_{part}"):
                tree = params["parts"][str(part)] | {"layers": layers[part][block]}
                v_BTd, written = run_span(
                    config.parts[part], tree, _enter(config, projectors, h_BTD, part, alpha),
                    config.spans(part)[block], caches.get(str(part)), key=fold_in(key, part), **options,
                )  # fmt: skip
                if written is not None:
                    caches[str(part)] = written
                left.append(_leave(config, projectors, v_BTd, part, alpha))
        h_BTD = tap("resid_post", constrain(_sum(left), "batch", "sequence", None))
    kept = [tap.kept() for tap in taps]
    captured = jax.tree.map(lambda *values: jnp.stack(values), *kept)
    return outer("final", h_BTD.astype(config.dtype)), outer.captured | captured, caches


@capture.register
def _capture(
    config: HybridConfig,
    params: dict,
    tokens_BT: jax.Array,
    sites: Sites | None,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    microbatches: int = 1,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    check_tokens(tokens_BT, config.known_vocab_size)
    check_sites(sites, SITES, "a hybrid")
    hidden_BTD, captured, _ = _run(
        config, params, tokens_BT, sites, key=key, positions=positions, segment_ids=segment_ids,
        microbatches=microbatches,
    )  # fmt: skip
    if positions is not None:
        hidden_BTD = where_it_fits(config, hidden_BTD, positions)
    return hidden_BTD, captured


@decode.register
def _decode(
    config: HybridConfig,
    params: dict,
    tokens_BT: jax.Array,
    cache: dict,
    *,
    mask_BT: jax.Array | None = None,
) -> tuple[jax.Array, dict]:
    check_tokens(tokens_BT, config.known_vocab_size)
    if mask_BT is None:
        check_length(config, tokens_BT.shape[1])
        mask_BT = jnp.ones(tokens_BT.shape, bool)
    before, T = cache_parts(cache), tokens_BT.shape[1]
    for one in before.values():
        if "valid" in one and T > one["valid"].shape[1]:
            raise UserError(f"{T} tokens do not fit a cache of {one['valid'].shape[1]}")
    hidden_BTD, _, written = _run(config, params, tokens_BT, None, before, mask_BT=mask_BT)
    parts = {}
    for name, one in written.items():
        length = one["length"] + T
        if "valid" in one:
            positions_BT, one = place_tokens(one, mask_BT)
            hidden_BTD = where_it_fits(config, hidden_BTD, positions_BT, one)
        parts[name] = {entry: x for entry, x in one.items() if entry != "shared"} | {"length": length}
    return hidden_BTD, cache | {"parts": parts, "length": cache["length"] + T}


@init_cache.register
def init_caches(config: HybridConfig, batch_size: int, max_length: int, *, apart: bool = False) -> dict:
    """Return {"parts": an empty cache of each part, "length"}; see `architecture.init_cache`."""
    parts = {
        str(index): init_cache(part, batch_size, max_length, apart=apart)
        for index, part in enumerate(config.parts)
    }
    return {"parts": parts, "length": jnp.zeros((), jnp.int32)}


@cache_axes.register
def caches_axes(config: HybridConfig) -> dict:
    """Return the names of a hybrid's cache; see `architecture.cache_axes`."""
    return {"parts": {str(i): cache_axes(part) for i, part in enumerate(config.parts)}, "length": ()}


@for_decoding.register
def _for_decoding(config: HybridConfig, params: dict) -> dict:
    parts = {
        str(index): for_decoding(part, params["parts"][str(index)]) for index, part in enumerate(config.parts)
    }
    params = params | {"parts": parts}
    heads, name = params["mixture"].get("heads", {}), _head_name(config)
    if is_apart(params) and name not in heads and len(config.running[0]) > 1:  # else mixed at every token
        heads = heads | {name: head_weights(config, params)[0]}
        # Beside the logits that it is of: another mixture, which takes their place, does not find it.
        params |= {"mixture": params["mixture"] | {"heads": heads}}
    return params


def _head_name(config) -> str:
    """Name a mixed head by what else it is of: the parts that block 0 runs."""
    return ",".join(map(str, config.running[0]))


@head_weights.register
def mixed_head(config: HybridConfig, params: dict) -> tuple[jax.Array, AxisNames]:
    """Return the head W = sum_m alpha_m E_m [V, D], of block 0's weights; of the only one that part's own."""
    names = AxisNames(("vocab", "embed"), ("embed",))
    laid_out = params["mixture"].get("heads", {}).get(_head_name(config))
    if laid_out is not None:
        return laid_out, names
    if len(config.running[0]) == 1 and not config.has_new_table(config.running[0][0]):
        [part] = config.running[0]
        return head_weights(config.parts[part], params["parts"][str(part)])
    tables = []
    for part, alpha in zip(config.running[0], mixture_weights(config, params)[0], strict=True):
        if config.has_new_table(part):
            head_Vd = _table(config, params, part)
        else:
            head_Vd, own = head_weights(config.parts[part], params["parts"][str(part)])
            head_Vd = head_Vd.T if own.index("vocab") else head_Vd
        tables.append(head_Vd if alpha is None else _scaled(alpha, fit(head_Vd, config.embed_dim)))
    return _sum(tables), names


@head_input.register
def _head_input(config: HybridConfig, params: dict, hidden_BTD: jax.Array) -> jax.Array:
    del params
    if len(config.running[0]) > 1:
        return hidden_BTD
    return fit(hidden_BTD, config.parts[config.running[0][0]].embed_dim)
