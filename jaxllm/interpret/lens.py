"""The logit lens on components: what a part of the residual stream says of the next token by itself.

A component's vector z is normed by the model's final norm and multiplied with the unembedding. There are two
ways to norm it, and they rank components differently, so that every function here asks which one is meant:

  "own"    divides z by its own root mean square, as if it were the whole stream: the logit lens. The final
           norm's bias is in every score.
  "final"  divides z by the root mean square of the whole stream at the end: attribution. Scores add up to the
           difference of the logits, in which the final norm's bias is a part of its own.

Differences between two tokens do not change when gains are folded into the next matrices, weights centred or
a number added to all logits; a single logit does.
"""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.errors import UserError, unknown
from jaxllm.interpret.components import check_components, components, inverse_rms, row_vectors
from jaxllm.models.head import head_weights

Norm = Literal["own", "final"]


class ComponentScores(NamedTuple):
    """logit(token) - logit(other) of each component through a lens, float32; see `component_scores`."""

    model_B: jax.Array  # the model's own difference of the two logits
    embed_B: jax.Array
    attn_LB: jax.Array  # with the output projection's bias
    heads_LBH: jax.Array  # without it
    mlp_LB: jax.Array
    rows_LBF: jax.Array  # of k_i v_i; norm="own" adds the MLP's output bias to each, as the paper does
    resid_LB: jax.Array  # of the stream leaving each layer: the classic logit lens
    bias_B: jax.Array  # of the final norm's bias alone
    row_sizes_LBF: jax.Array  # k_i * the length of v_i: how much a row writes, with the sign of k_i


def lens(
    config: models.ModelConfig,
    params: dict,
    x_ND: jax.Array,
    *,
    norm: Norm,
    final_ND: jax.Array | None = None,
) -> jax.Array:
    """Return the logits that a part of the residual stream gives by itself, float32 [..., V].

    Args:
      config: a decoder.
      params: its parameters.
      x_ND: [..., D], such as `Components.mlp_LBD`, or a row of `row_vectors`.
      norm: see the module; "final" leaves the final norm's bias out.
      final_ND: with norm="final" the stream that the model norms, `Components.resid_LBD[-1]`; broadcasts.

    Raises:
      UserError: see `check_components`; norm="final" without a final_ND, or norm="own" with one.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> seen = components(config, params, jnp.zeros((3, 8), int))
      >>> lens(config, params, seen.resid_LBD, norm="own").shape  # layers, texts, vocabulary
      (2, 3, 256)
    """
    check_components(config)
    _check_norm(norm)
    if (final_ND is None) == (norm == "final"):
        said = "is not given" if final_ND is None else "is given"
        raise UserError(
            f"final_ND {said} and norm='{norm}'; norm='final' divides by its size, norm='own' not"
        )
    factor = inverse_rms(config, (x_ND if final_ND is None else final_ND).astype(jnp.float32))
    gain, bias = _final_norm(config, params)
    x_ND = _read(config, gain, x_ND.astype(jnp.float32)) * factor
    hidden_ND = x_ND + bias if norm == "own" else x_ND
    return models.logits(config, params, hidden_ND.astype(jnp.float32))


def component_scores(
    config: models.ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    token_B: jax.Array,
    other_B: jax.Array,
    *,
    norm: Norm,
    positions_B: jax.Array | None = None,
) -> ComponentScores:
    """Return how much more each component says `token` than `other`: all layers, heads, MLPs, rows at once.

    One compiled program. A row's score does not need its vector k_i v_i in memory: of the vectors v_i three
    products with the unembedding, the bias and themselves are enough, whatever the number of texts.

    Args:
      config: a decoder.
      params: its parameters, layers stacked.
      tokens_BT: int [B, T], padded on the right if at all.
      token_B, other_B: int [B], or one for all texts.
      norm: see the module.
      positions_B: int [B], whose next token is meant; None: the last of the row.

    Raises:
      UserError: see `check_components`; ids that the vocabulary does not have; parameters of another config.

    Examples:
      >>> config = models.get_preset("gpt2-nano")
      >>> params = models.init(config, jax.random.key(0))
      >>> tokens = jnp.arange(24).reshape(3, 8)
      >>> scores = component_scores(config, params, tokens, 65, 66, norm="final")
      >>> parts = scores.embed_B + scores.attn_LB.sum(0) + scores.mlp_LB.sum(0) + scores.bias_B
      >>> bool(jnp.allclose(parts, scores.model_B, atol=1e-5))
      True
    """
    check_components(config)
    _check_norm(norm)
    models.check_params(config, params)
    tokens_BT = jnp.asarray(tokens_BT)
    B, T = tokens_BT.shape
    for name, ids in (("token_B", token_B), ("other_B", other_B)):
        models.check_ids(jnp.asarray(ids), config.known_vocab_size, name)
    if positions_B is None:
        positions_B = T - 1
    pair = (jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (B,)) for ids in (token_B, other_B, positions_B))
    return _scores(config, norm, params, tokens_BT, *pair)


def unembedding(config: models.ModelConfig, params: dict, tokens_N: jax.Array) -> jax.Array:
    """Return the vectors whose product with hidden states are tokens' logits, float32 [N, D].

    Raises:
      UserError: see `check_components`; ids that the vocabulary does not have.
    """
    check_components(config)
    tokens_N = jnp.asarray(tokens_N, jnp.int32)
    models.check_ids(tokens_N, config.known_vocab_size, "tokens_N")
    weights, names = head_weights(config, params)
    axis = names.index("vocab")
    return jnp.moveaxis(jnp.take(weights, tokens_N, axis=axis), axis, 0).astype(jnp.float32)


def _check_norm(norm: str) -> None:
    if norm not in get_args(Norm):
        raise unknown("norm", norm, get_args(Norm))


def _final_norm(config, params):
    """Return the final norm's (gain, bias), each [D]."""
    scale = params["final_norm"]["scale"].astype(jnp.float32)
    gain = jnp.broadcast_to(scale, (config.embed_dim,))
    bias = params["final_norm"].get("bias", jnp.zeros(config.embed_dim, jnp.float32))
    return gain, bias.astype(jnp.float32)


def _read(config, gain_D, x_ND):
    """Return x as the final norm passes it on, its size apart."""
    if config.norm == "layernorm":
        x_ND = x_ND - jnp.mean(x_ND, axis=-1, keepdims=True)
    return x_ND * gain_D


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(config, norm, params, tokens_BT, token_B, other_B, positions_B) -> ComponentScores:
    seen = components(config, params, tokens_BT, positions_B)
    vector_BD = unembedding(config, params, token_B) - unembedding(config, params, other_B)
    gain_D, bias_D = _final_norm(config, params)
    # (x - mean(x)) * gain . u = x . centred(gain * u): one vector a text reads every component.
    reader_BD = gain_D * vector_BD
    if config.norm == "layernorm":
        reader_BD = reader_BD - jnp.mean(reader_BD, axis=-1, keepdims=True)
    bias_B = vector_BD @ bias_D
    final_B1 = inverse_rms(config, seen.resid_LBD[-1])

    def score(x_XBD):
        said_XB = jnp.einsum("...BD,BD->...B", x_XBD, reader_BD)
        if norm == "final":
            return said_XB * final_B1[:, 0]
        return said_XB * inverse_rms(config, x_XBD)[..., 0] + bias_B

    rows_LBF, sizes_LBF = _row_scores(config, norm, params, seen, reader_BD, bias_B, final_B1)
    model_B = jnp.sum(seen.resid_LBD[-1] * reader_BD, axis=-1) * final_B1[:, 0] + bias_B
    return ComponentScores(
        model_B=model_B,
        embed_B=score(seen.embed_BD),
        attn_LB=score(seen.attn_LBD),
        heads_LBH=jnp.moveaxis(score(jnp.moveaxis(seen.heads_LBHD, 2, 1)), 1, 2),
        mlp_LB=score(seen.mlp_LBD),
        rows_LBF=rows_LBF,
        resid_LB=score(seen.resid_LBD),
        bias_B=bias_B,
        row_sizes_LBF=sizes_LBF,
    )


def _row_scores(config, norm, params, seen, reader_BD, bias_B, final_B1):
    """Return (the score, the signed length) of k_i v_i of every row, each [L, B, F], without these vectors.

    With z = k v + b and the reader g: z.g = k v.g + b.g, and mean(z^2) = k^2 mean(v^2) + 2 k mean(v b) +
    mean(b^2); the same of centred vectors with LayerNorm.
    """
    v_LFD, k_LBF = row_vectors(config, params), seen.rows_LBF
    D = config.embed_dim
    said_LBF = k_LBF * jnp.einsum("BD,LFD->LBF", reader_BD, v_LFD)
    square_LF = jnp.sum(jnp.square(v_LFD), axis=-1)
    sizes_LBF = k_LBF * jnp.sqrt(square_LF)[:, None]
    if norm == "final":
        return said_LBF * final_B1, sizes_LBF
    b_LBD = seen.mlp_bias_LBD
    if config.norm_place != "sandwich":  # the bias is the same for all texts
        b_LBD = b_LBD[:, :1]
    said_LBF += jnp.einsum("LBD,BD->LB", seen.mlp_bias_LBD, reader_BD)[..., None]
    product_LBF = jnp.einsum("LBD,LFD->LBF", b_LBD, v_LFD) / D
    vv_L1F, bb_LB1 = square_LF[:, None] / D, jnp.mean(jnp.square(b_LBD), axis=-1, keepdims=True)
    if config.norm == "layernorm":
        v_L1F, b_LB1 = jnp.mean(v_LFD, axis=-1)[:, None], jnp.mean(b_LBD, axis=-1, keepdims=True)
        vv_L1F, product_LBF, bb_LB1 = vv_L1F - v_L1F**2, product_LBF - v_L1F * b_LB1, bb_LB1 - b_LB1**2
    variance_LBF = k_LBF * (k_LBF * vv_L1F + 2 * product_LBF) + bb_LB1
    said_LBF = said_LBF * jax.lax.rsqrt(jnp.maximum(variance_LBF, 0) + config.norm_eps)
    return said_LBF + bias_B[:, None], sizes_LBF
