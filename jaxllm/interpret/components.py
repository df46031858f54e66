"""What each component of a transformer writes into the residual stream, at one position of each text."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.errors import UserError


class Components(NamedTuple):
    """The parts of the residual stream at one position, float32.

    embed + sum over layers of attn + mlp is the stream before the final norm, resid of the last layer. A
    layer's heads and attn_bias add up to its attn; its rows times `row_vectors`, and mlp_bias, to its mlp.
    """

    embed_BD: jax.Array
    heads_LBHD: jax.Array  # a head's mix of values, through its slice of the output projection
    attn_bias_LBD: jax.Array
    attn_LBD: jax.Array
    rows_LBF: jax.Array  # what multiplies each row of the MLP's output matrix: k_i of sum_i k_i v_i
    mlp_bias_LBD: jax.Array
    mlp_LBD: jax.Array
    resid_LBD: jax.Array  # the stream leaving each layer


def check_components(config: models.LanguageModel) -> None:
    """Check that a model's logits are a norm and a matrix away from a sum over components.

    Raises:
      UserError: another architecture, an encoder, a stream that is normed between blocks, or a head of
        groups or labels.
    """
    models.check_transformer(config, "a lens on heads and MLPs")
    models.check_decodes(config)
    if config.norm_place == "post":
        raise UserError(
            "the model has norm_place='post', which norms the residual stream after each block: it is no sum "
            "of components to look at through a lens; take a model with norm_place='pre' or 'sandwich'"
        )
    if config.vocab_groups is not None:
        raise UserError(
            "the model has vocab_groups, whose logits are no product with hidden states; take a lens of a "
            "model with a dense head (vocab_groups=None)"
        )


def components(
    config: models.ModelConfig, params: dict, tokens_BT: jax.Array, positions_B: jax.Array | None = None
) -> Components:
    """Return what every component writes at one position of each text.

    Layers are run once. Of each, what stands at the position is kept, and nothing else.

    Args:
      config: a decoder.
      params: its parameters, layers stacked.
      tokens_BT: int [B, T], padded on the right if at all.
      positions_B: int [B], of each text's token to look at; None: the last of the row.

    Raises:
      UserError: see `check_components`.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> seen = components(config, params, jnp.zeros((3, 8), int))
      >>> seen.heads_LBHD.shape, seen.rows_LBF.shape
      ((2, 3, 2, 64), (2, 3, 256))
    """
    check_components(config)
    if positions_B is None:
        positions_B = jnp.full(tokens_BT.shape[0], tokens_BT.shape[1] - 1, jnp.int32)
    return _components(config, params, tokens_BT, positions_B)


@functools.partial(jax.jit, static_argnums=0)
def _components(config, params, tokens_BT, positions_B) -> Components:
    def at_position(x_BTX):
        index = positions_B.reshape(-1, *[1] * (x_BTX.ndim - 1))
        return jnp.take_along_axis(x_BTX, index, axis=1)[:, 0].astype(jnp.float32)

    def keep(captured, layer):
        del layer
        return jax.tree.map(at_position, captured)

    sites = models.Sites(("embed", "head_out", "attn_out", "mlp_hidden", "mlp_out", "resid_post"), keep=keep)
    seen = models.capture(config, params, tokens_BT, sites)[1]
    attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
    heads_LBHD = jnp.einsum("LBHK,LHKD->LBHD", seen["head_out"], attn["out"].astype(jnp.float32))
    attn_norm, mlp_norm = _Norm.of(config, attn), _Norm.of(config, mlp)
    raw_LBD = seen["attn_out"]
    if attn_norm.scale_LD is not None:
        raw_LBD = jnp.sum(heads_LBHD, axis=2) + _bias(attn, raw_LBD)
    attn_factor_LB1, mlp_factor_LB1 = attn_norm.factor(raw_LBD), jnp.ones((), jnp.float32)
    if mlp_norm.scale_LD is not None:
        raw_LBD = jnp.einsum("LBF,LFD->LBD", seen["mlp_hidden"], mlp["out"].astype(jnp.float32))
        mlp_factor_LB1 = mlp_norm.factor(raw_LBD + _bias(mlp, raw_LBD))
    return Components(
        embed_BD=at_position(seen["embed"]),
        heads_LBHD=attn_norm.linear(heads_LBHD) * attn_factor_LB1[..., None],
        attn_bias_LBD=attn_norm.linear(_bias(attn, seen["attn_out"])) * attn_factor_LB1 + attn_norm.shift,
        attn_LBD=seen["attn_out"],
        rows_LBF=seen["mlp_hidden"] * mlp_factor_LB1,
        mlp_bias_LBD=mlp_norm.linear(_bias(mlp, seen["mlp_out"])) * mlp_factor_LB1 + mlp_norm.shift,
        mlp_LBD=seen["mlp_out"],
        resid_LBD=seen["resid_post"],
    )


def row_vectors(config: models.ModelConfig, params: dict) -> jax.Array:
    """Return the vector v_i that each MLP row writes when its coefficient is 1, [L, F, D] in float32.

    Where a block's output is normed (Gemma 3) a row passes through the norm's gain; how large the output was
    is part of `Components.rows_LBF`.
    """
    mlp = params["layers"]["mlp"]
    return _Norm.of(config, mlp).linear(mlp["out"].astype(jnp.float32))


def _bias(block: dict, like_LBD: jax.Array) -> jax.Array:
    """Return a block's output bias for every text, or zeros."""
    if "out_bias" not in block:
        return jnp.zeros_like(like_LBD)
    return jnp.broadcast_to(block["out_bias"].astype(jnp.float32)[:, None], like_LBD.shape)


class _Norm(NamedTuple):
    """The norm of blocks' outputs, of all layers; without one its parts change nothing."""

    config: models.ModelConfig
    scale_LD: jax.Array | None
    bias_LD: jax.Array | None

    @classmethod
    def of(cls, config, block: dict) -> "_Norm":
        norm = {name: x.astype(jnp.float32) for name, x in block.get("out_norm", {}).items()}
        return cls(config, norm.get("scale"), norm.get("bias"))

    def linear(self, x_LXD):
        """Return what the norm does to parts of its input, up to the factor of the whole input."""
        if self.scale_LD is None:
            return x_LXD
        scale = self.scale_LD.reshape(self.scale_LD.shape[0], *[1] * (x_LXD.ndim - 2), -1)
        return _centred(self.config, x_LXD) * scale

    def factor(self, x_LBD):
        """Return 1 / the root mean square of the norm's whole input, [L, B, 1]."""
        if self.scale_LD is None:
            return jnp.ones((*x_LBD.shape[:2], 1), jnp.float32)
        return inverse_rms(self.config, x_LBD)

    @property
    def shift(self):
        return 0.0 if self.bias_LD is None else self.bias_LD[:, None]


def _centred(config, x_ND):
    return x_ND - jnp.mean(x_ND, axis=-1, keepdims=True) if config.norm == "layernorm" else x_ND


def inverse_rms(config: models.ModelConfig, x_ND: jax.Array) -> jax.Array:
    """Return what the model's norm multiplies a vector with, gain apart: [..., 1]."""
    square = jnp.mean(jnp.square(_centred(config, x_ND)), axis=-1, keepdims=True)
    return jax.lax.rsqrt(square + config.norm_eps)
