"""What a class of models brings: its parameters and how it runs, found by the class of its config.

An architecture is a config class and a file that registers these functions for it (transformer.py for
`ModelConfig`, mamba.py for `MambaConfig`). All else in the library reads declarations and calls these.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxllm.axis_names import AxisNames
from jaxllm.models.sites import Sites


class Declaration(NamedTuple):
    """One parameter, its axes [in..., out...] if it is a product's weight, and its initialiser.

    `inputs` are the axes that the product sums over, () if it is no product's weight: a gain, a bias, a
    sink. All that needs to know which axis is which reads it, as `names.inputs`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    std: float = 0.0
    mean: float = 0.0
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array] | None = None  # (key, shape); None: normal

    @property
    def names(self) -> AxisNames:
        """Return the names of the axes, as everything outside takes them."""
        return AxisNames(self.axes, self.inputs)

    @property
    def size(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)


def is_declaration(x) -> bool:
    """Say whether a node of what `declare` returns is one parameter."""
    return isinstance(x, Declaration)


def leaves(declared: dict) -> list[Declaration]:
    """Return the `Declaration`s of a nested dict."""
    return jax.tree.leaves(declared, is_leaf=is_declaration)


def stacked(layers: int, declared: dict) -> dict:
    """Return one layer's declarations as a stack's: one array for all layers, scanned over its first axis."""
    return jax.tree.map(
        lambda one: one._replace(shape=(layers, *one.shape), axes=("layers", *one.axes)),
        declared,
        is_leaf=is_declaration,
    )


def _unregistered(config) -> Any:
    raise TypeError(f"no architecture is registered for {type(config).__name__}; see models/architecture.py")


@functools.singledispatch
def declare(config) -> dict:
    """Return the nested dict of `Declaration`s that all of `models` is made from, layers stacked.

    It has "embed" with "tokens", "layers", and "head" unless the head is the token table.
    """
    return _unregistered(config)


@functools.singledispatch
def capture(
    config,
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
    """Return (hidden states as `trunk` does, {site: values stacked over layers}).

    With `sites.keep`, what that returns for each layer is stacked instead; if a layer takes
    `microbatches` (see `trunk`) its first axis must be the batch's.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxllm import models
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> tokens = jnp.zeros((1, 5), int)
      >>> _, values = capture(config, params, tokens, Sites(capture=("attn_probs",)))
      >>> values["attn_probs"].shape  # layers, batch, heads, queries, keys
      (2, 1, 2, 5, 5)
    """
    return _unregistered(config)


def trunk(
    config,
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
    """Return hidden states after the final norm: [B, T, D] in `config.dtype`.

    Args:
      tokens_BT: int [B, T]; or, of a transformer of one stack, float [B, T, D]: vectors in place of tokens'
        as the stream takes them; with `config.scale_embeddings` tokens' are sqrt(D) times the table's rows.
      positions: int [B, T]; None counts from 0, anew in each segment.
      segment_ids: int [B, T], one number a document of a packed row; documents do not see each
        other. A mask of padding is one too: where it is 0 nothing is seen by what is text.
      token_types: int [B, T], which of `config.num_token_types` each token is; None: all 0.
      sites: activations to edit (to capture them use `capture`).
      microbatches: how many each layer takes one after another, before the next layer; must divide B.
      key: draws what `config.dropout` drops; None: nothing is dropped.
      context: what `encode` returned, of an encoder-decoder; other models take none.

    Raises:
      UserError: more tokens than a learned position table has; no [B, T]; ids that are fractions or, outside
        of jit, that the vocabulary does not have, or positions that the table does not have: in jit they
        give NaN.
    """
    options = dict(positions=positions, segment_ids=segment_ids, microbatches=microbatches, key=key)
    if context is not None:
        options["context"] = context
    if token_types is not None:
        options["token_types"] = token_types
    return capture(config, params, tokens_BT, sites, **options)[0]


@functools.singledispatch
def decode(
    config,
    params: dict,
    tokens_BT: jax.Array,
    cache: dict,
    *,
    mask_BT: jax.Array | None = None,
) -> tuple[jax.Array, dict]:
    """Run the next T tokens after those in the cache: the prompt at once, then one at a time.

    Args:
      tokens_BT: int [B, T], or vectors as of `trunk`.
      cache: from `init_cache` or the last call. Donated to a jitted step, it is updated in place.
      mask_BT: False at padding, which must be on the left of a row's tokens; None: all True.

    Returns:
      (hidden_BTD after the final norm, the cache with the tokens added). Hidden states at padding
      are meaningless but finite. Those of tokens that a learned table has no position for are NaN, and all
      are where the cache has no slot left for the tokens.
    """
    return _unregistered(config)


@functools.singledispatch
def embed_tokens(config, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Return a table's vectors [B, T, D] for tokens as the residual stream takes them, without positions."""
    return _unregistered(config)


@functools.singledispatch
def run_span(
    config,
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
    """Run some of the layers, for a model that is a part of another (`HybridConfig`).

    What is added to tokens' vectors before the first layer, as positions, comes with a span that begins
    there; the final norm with one that ends at the last.

    Args:
      params: the model's, "layers" being those of the span alone.
      x_BTD: the residual stream.
      span: which layers, such as range(2, 4).
      sites: activations to edit: embed too, of a span that begins at the first layer.
      cache: as it was before these tokens, or None; "valid" and "length" stay so, until all spans have run.

    Returns:
      (the stream after them, the cache with the span's layers written to).
    """
    return _unregistered(config)


@functools.singledispatch
def init_cache(config, batch_size: int, max_length: int, *, apart: bool = False) -> dict:
    """Return an empty cache for `max_length` tokens a row, padding included.

    Args:
      apart: one array a layer, for parameters whose layers are apart (`for_decoding`).

    Raises:
      UserError: the model is one that cannot decode.

    Returns:
      Of a transformer {"key", "value": [L, B, G, S, K] in config.dtype, or a tuple of L arrays
      [B, G, S, K]; "valid": bool [B, S] (slots that hold a token and not padding), "length": int32 []
      (slots written)}. Of a Mamba see `mamba`: its size does not depend on `max_length`.
    """
    return _unregistered(config)


@functools.singledispatch
def prefill(config, params: dict, tokens_BT: jax.Array, mask_BT: jax.Array | None, *, slots: int):
    """Read prompts; return (hidden states that predict the first token after them [B, D], a cache).

    Args:
      tokens_BT: int [B, T]; of an encoder-decoder the sources, and what follows begins anew.
      mask_BT: False at padding, which must be on the left; None: there is none.
      slots: tokens that a row of the cache holds, prompts included; of an encoder-decoder those of what
        follows, `config.start_id` included.
    """
    return _unregistered(config)


@functools.singledispatch
def cache_axes(config) -> dict:
    """Return the logical axis names of each array of a stacked cache, structured like `init_cache`'s."""
    return _unregistered(config)
