"""Running a model from states within it, and gradients with respect to what flows through it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError, brief
from jaxllm.models.architecture import run_span
from jaxllm.models.sites import Sites


def forward_from(
    config: models.LanguageModel,
    params: dict,
    layer: int | jax.Array,
    states_BTD: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    sites: Sites | None = None,
    cache: dict | None = None,
) -> jax.Array:
    """Return what `models.trunk` would, begun from the residual stream after some layers: [B, T, D].

    The stream that `models.capture` reads at embed goes in at layer 0, that at resid_post of layer i at
    i + 1: a model of L layers has L + 1 such places. Layers below are skipped. A traced layer gives one
    program for all places.

    In a model that sees what is behind it alone, an edit changes nothing before it. With the `cache` of the
    tokens before, states from the first edited one on are all that is run: many edits share a cache.

    Args:
      config: a decoder, an encoder or a Mamba.
      params: its parameters.
      layer: how many layers the states have been through.
      states_BTD: the stream, of any float type.
      positions: see `models.trunk`.
      segment_ids: see `models.trunk`; of padded texts of an encoder their mask.
      sites: edits of the layers that are left, which keep their numbers, and of final.
      cache: of the tokens before the states' first, from `models.prefill` with slots for both; it stays as
        it is. The layer is then a number, and positions, segment_ids and sites are not given.

    Raises:
      UserError: a layer that the model does not have, states of another width or rank, sites that capture
        or edit embed, an encoder-decoder, a cache beside what goes without one.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> tokens = jnp.arange(8).reshape(1, 8)
      >>> whole, seen = models.capture(config, params, tokens, models.Sites(("resid_post",)))
      >>> bool(jnp.allclose(forward_from(config, params, 1, seen["resid_post"][0]), whole, atol=1e-5))
      True
    """
    if isinstance(config, models.EncoderDecoderConfig):
        raise UserError(
            "forward_from runs one stack, and an encoder-decoder has two; give a decoder or an encoder"
        )
    if not isinstance(layer, jax.core.Tracer):
        check_depth(layer, config.num_layers)
    shape = np.shape(states_BTD)
    if len(shape) != 3 or shape[2] != config.embed_dim:
        raise UserError(
            f"states_BTD has shape {shape}; it must be [B, T, {config.embed_dim}], the model's width"
        )
    if cache is not None:
        return _continued(config, params, layer, states_BTD, cache, (positions, segment_ids, sites))
    sites = sites or Sites()
    if "embed" in sites.edits or sites.capture:
        said = "edit embed, which the states replace" if "embed" in sites.edits else "capture"
        raise UserError(f"sites {said}; give edits of the layers that are left, or of final")
    kept_L = jnp.arange(config.num_layers, dtype=jnp.int32) >= layer
    layers = params["layers"]
    if isinstance(layers, tuple):
        layers = tuple(models.LayerView(one, None, kept_L[i], _whole) for i, one in enumerate(layers))
    else:
        layers = models.LayerView(layers, None, kept_L, _whole)
    edits = dict(sites.edits) | _entering(states_BTD)
    tokens_BT = jnp.zeros(shape[:2], jnp.int32)  # looked up, and replaced
    told = dict(positions=positions, segment_ids=segment_ids, sites=Sites(edits=edits))
    return models.trunk(config, params | {"layers": layers}, tokens_BT, **told)


def _continued(config, params, layer, states_BTD, cache, others) -> jax.Array:
    """Run the layers that are left on states that come after the tokens of a cache."""
    if isinstance(layer, jax.core.Tracer) or any(x is not None for x in others):
        raise UserError(
            "forward_from takes a cache with a layer that is a number, not traced, and without positions, "
            "segment_ids and sites"
        )
    if layer == config.num_layers:  # nothing looks back any more
        return forward_from(config, params, layer, states_BTD)
    layers = params["layers"]
    left = layers[layer:] if isinstance(layers, tuple) else jax.tree.map(lambda x: x[layer:], layers)
    x_BTD = jnp.asarray(states_BTD).astype(config.dtype)
    told = dict(span=range(layer, config.num_layers), cache=cache, sites=Sites(edits=_entering(states_BTD)))
    hidden_BTD, _ = run_span(config, params | {"layers": left}, x_BTD, **told)
    if "valid" in cache:  # one slot a token; written past the end they would replace the last in silence
        fits = cache["length"] + x_BTD.shape[1] <= cache["valid"].shape[1]
        hidden_BTD = jnp.where(fits, hidden_BTD, jnp.nan)
    return hidden_BTD


def _entering(states_BTD) -> dict:
    """Return the edit of what enters the first layer: the states have positions, types and a norm already."""
    return {"embed": lambda value, _: jnp.asarray(states_BTD).astype(value.dtype)}


def check_depth(layer: int, layers: int) -> None:
    """Check that states can have been through so many layers of a model.

    Raises:
      UserError: it has fewer, or the number is none.
    """
    is_whole = isinstance(layer, int | np.integer) or (hasattr(layer, "dtype") and layer.dtype.kind in "iu")
    if isinstance(layer, bool) or not is_whole or np.ndim(layer) or not 0 <= layer <= layers:
        raise UserError(
            f"layer is {brief(layer)}; the model has {layers}, so it must be from 0 (what enters the first) "
            f"to {layers} (what leaves the last)"
        )


def site_gradients(
    config: models.LanguageModel,
    params: dict,
    tokens_BT: jax.Array,
    sites: Sites,
    scalar: Callable[[jax.Array], jax.Array],
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (scalar(hidden states), {site: its gradient}), shaped as `models.capture` gives the sites.

    Args:
      config: the model.
      params: its parameters.
      tokens_BT: int [B, T].
      sites: `capture` names the sites that a gradient is asked of, all layers at once; `edits` are applied.
      scalar: hidden states [B, T, D], after the final norm -> a number, such as the sum over texts of a
        log-probability (`models.token_log_probs`) or of a probe's loss.
      positions: see `models.trunk`.
      segment_ids: see `models.trunk`.

    Raises:
      UserError: no site, a `keep` (which would decide what is stacked), or a scalar that is none.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> sites = models.Sites(("resid_post", "head_out"))
      >>> value, slopes = site_gradients(config, params, jnp.zeros((1, 4), int), sites, jnp.sum)
      >>> slopes["resid_post"].shape, slopes["head_out"].shape
      ((2, 1, 4, 64), (2, 1, 4, 2, 32))
    """
    if not sites.capture:
        raise UserError("sites capture nothing; name in capture= the sites that a gradient is asked of")
    if sites.keep is not Sites().keep:
        raise UserError("sites have a keep=; gradients are of whole sites: leave it out")
    told = dict(positions=positions, segment_ids=segment_ids)
    found = jax.eval_shape(lambda: models.capture(config, params, tokens_BT, sites, **told)[1])
    offsets = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    def value_of(offsets):
        def shifted(name):
            edit = sites.edits.get(name, lambda value, layer: value)
            layerless = name in ("embed", "final")
            return lambda value, layer: (
                edit(value, layer) + (offsets[name] if layerless else offsets[name][layer])
            )

        edits = dict(sites.edits) | {name: shifted(name) for name in sites.capture}
        value = scalar(models.trunk(config, params, tokens_BT, sites=Sites(edits=edits), **told))
        if jnp.shape(value):
            raise UserError(f"scalar returned shape {jnp.shape(value)}; it must return one number")
        return value

    return jax.value_and_grad(value_of)(offsets)


def _whole(layer: dict, rows: None) -> dict:
    return layer
