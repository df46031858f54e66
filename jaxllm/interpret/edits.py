"""Editing a model to see what a part of it does: rows of MLPs, and whom heads attend to. Nothing in place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import UserError, brief
from jaxllm.models.sites import Edit


def shift_row(config: models.ModelConfig, params: dict, layer: int, row: int, shift_D: jax.Array) -> dict:
    """Return the parameters with a vector added to one row of a layer's MLP output matrix: v_i + shift.

    At every position where the row's coefficient is k_i, the layer then writes k_i * shift more; where k_i is
    negative, which GELU and gated MLPs allow, it works backwards. All other arrays are shared with `params`.
    Layer and row are traced: editing one after another compiles nothing anew.

    Args:
      config: a transformer.
      params: its parameters, layers stacked; they stay as they are.
      layer, row: which; from 0.
      shift_D: [D], such as weighted sums of `interpret.unembedding`s.

    Raises:
      UserError: a layer or row that the model does not have, or a shift of another width.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> edited = shift_row(config, params, 1, 200, jnp.ones(64))
      >>> float(jnp.sum(edited["layers"]["mlp"]["out"] - params["layers"]["mlp"]["out"]).round())
      64.0
    """
    models.check_transformer(config, "an edit of an MLP's row")
    models.check_params(config, params)
    check_place("layer", layer, config.num_layers)
    check_place("row", row, config.mlp_dim)
    if np.shape(shift_D) != (config.embed_dim,):
        raise UserError(
            f"shift_D has shape {np.shape(shift_D)}; it must be ({config.embed_dim},), the model's width"
        )
    layers = params["layers"]
    out_LFD = _shifted(layers["mlp"]["out"], layer, row, jnp.asarray(shift_D))
    return params | {"layers": layers | {"mlp": layers["mlp"] | {"out": out_LFD}}}


@jax.jit
def _shifted(out_LFD, layer, row, shift_D):
    return out_LFD.at[layer, row].add(shift_D.astype(out_LFD.dtype))


def head_mask(config: models.ModelConfig, heads: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return bool [L, H], True at (layer, head) pairs.

    Raises:
      UserError: a layer or head that the model does not have.

    Examples:
      >>> head_mask(models.get_preset("gpt2-nano"), [(1, 0)]).tolist()
      [[False, False], [True, False]]
    """
    models.check_transformer(config, "an edit of attention")
    mask_LH = np.zeros((config.num_layers, config.num_heads), bool)
    for layer, head in heads:
        check_place("layer", layer, config.num_layers)
        check_place("head", head, config.num_heads)
        mask_LH[layer, head] = True
    return mask_LH


def swap_attention(
    mask_LH: jax.Array, query_B: jax.Array, one_B: jax.Array, other_B: jax.Array
) -> dict[str, Edit]:
    """Return edits for `models.Sites` that exchange what chosen heads attend to at two positions.

    After the softmax the weights of positions `one` and `other` change places in the row of position
    `query`, which sums to what it did; the values stay where they are. (Exchanging weighted values would
    change nothing: a head sums over positions.) All arguments may be traced, so that one program serves any
    choice of heads.

    Args:
      mask_LH: bool [L, H], the chosen heads; see `head_mask`.
      query_B: int [B], the position that attends.
      one_B, other_B: int [B], positions that it sees.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> query, one, other = jnp.array([7, 7]), jnp.array([1, 2]), jnp.array([3, 3])
      >>> sites = models.Sites(edits=swap_attention(head_mask(config, [(1, 0)]), query, one, other))
      >>> models.trunk(config, params, jnp.ones((2, 8), int), sites=sites).shape
      (2, 8, 64)
    """
    mask_LH = jnp.asarray(mask_LH)

    def edit(probs_BHTS, layer):
        texts_B = jnp.arange(probs_BHTS.shape[0], dtype=jnp.int32)
        row_BHS = probs_BHTS[texts_B, :, query_B]
        position_BS = jnp.broadcast_to(
            jnp.arange(row_BHS.shape[-1], dtype=jnp.int32), (len(texts_B), row_BHS.shape[-1])
        )
        one_B1, other_B1 = jnp.asarray(one_B)[:, None], jnp.asarray(other_B)[:, None]
        source_BS = jnp.where(position_BS == one_B1, other_B1, position_BS)
        source_BS = jnp.where(position_BS == other_B1, one_B1, source_BS)
        swapped_BHS = jnp.take_along_axis(row_BHS, source_BS[:, None], axis=-1)
        row_BHS = jnp.where(mask_LH[layer][None, :, None], swapped_BHS, row_BHS)
        return probs_BHTS.at[texts_B, :, query_B].set(row_BHS)

    return {"attn_probs": edit}


def check_place(name: str, value: int, count: int) -> None:
    """Check that a model has a layer, head or row of this number.

    Raises:
      UserError: it has not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
        raise UserError(
            f"{name} is {brief(value)}; the model has {count}, so it must be from 0 to {count - 1}"
        )
