"""T5 (Raffel et al., arXiv 1910.10683): an encoder reads a text, a decoder writes another and attends to it.

Attention adds to each score a bias for the distance between query and key, one number a head for each of a
few buckets of distances, and does not scale its scores. Norms are RMSNorms before each block; nothing has a
bias but the scores.

    context = models.encode(config, params, tokens_BS)
    hidden = models.trunk(config, params, tokens_BT, context=context)  # for hidden_loss, logits
    cache = models.context_cache(config, params, context, max_length=100)  # its keys and values, once
    hidden, cache = models.decode(config, params, tokens_BT, cache)

Suffixes as everywhere, S also for the tokens of the context.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxllm_kernels import attention as kernel

from jaxllm.config import CountOrZero, Positive, Range, Size
from jaxllm.errors import UserError
from jaxllm.models.architecture import Declaration, capture, declare, decode, stacked
from jaxllm.models.cache import LayerCache
from jaxllm.models.config import (
    ACTIVATIONS,
    DTYPES,
    GROUP_HEADS,
    REMAT,
    LanguageModel,
    Layers,
    ModelConfig,
)
from jaxllm.models.declarations import declare_head, declare_mlp
from jaxllm.models.distance_bias import distance_bias
from jaxllm.models.ids import check_tokens
from jaxllm.models.layers import run_layers
from jaxllm.models.linear import linear, linears
from jaxllm.models.look_up import look_up
from jaxllm.models.mlp import mlp_block
from jaxllm.models.norms import normalize
from jaxllm.models.parameters import axes
from jaxllm.models.sites import Sites, Tap, check_sites
from jaxllm.models.vocab_groups import VocabGroups
from jaxllm.parallel import constrain

SITES = ("embed", "resid_pre", "mlp_in", "mlp_hidden", "mlp_out", "resid_post", "final")  # of the decoder


@dataclass(frozen=True)
class EncoderDecoderConfig(LanguageModel):
    """A T5. The defaults are T5 1.1 small's, and Flan-T5's.

    Sizes given as None are replaced by their derived defaults when the config is made.

    Raises:
      UserError: a value that its field may not hold.

    Examples:
      >>> EncoderDecoderConfig().num_params
      76961152
    """

    vocab_size: Size | None = 32128
    context_length: Size = 512  # of the texts it was trained on; no weight depends on it
    num_layers: Layers = 8  # of the decoder
    num_encoder_layers: Layers | None = None  # None: num_layers
    embed_dim: Size = 512
    num_heads: Size = 6
    head_dim: Size = 64
    mlp_dim: Size = 1024
    activation: Literal[ACTIVATIONS] = "gelu_tanh"
    gated_mlp: bool = True
    distance_buckets: Annotated[int, Range(4, 4096)] = 32
    longest_distance: Annotated[int, Range(2, 2**20)] = 128  # from here on all distances share a bucket
    norm_eps: Positive = 1e-6
    start_id: CountOrZero = 0  # the token that the decoder begins with
    tie_embeddings: bool = False  # the head is the token table, of states divided by sqrt(embed_dim)
    vocab_groups: VocabGroups | None = None
    group_head: Literal[GROUP_HEADS] = "hidden"  # with vocab_groups alone
    init_std: Positive = 1.0  # of the token table and the head; matrices have 1 / sqrt(inputs)
    dtype: Literal[DTYPES] = "float32"  # of matmuls and activations
    param_dtype: Literal[DTYPES] = "float32"
    remat: Literal[REMAT] = "none"  # what each layer keeps for the backward pass
    architecture: Literal["encoder_decoder"] = "encoder_decoder"

    def __post_init__(self):
        super().__post_init__()
        if self.longest_distance <= self.distance_buckets // 2:
            raise UserError(
                f"longest_distance={self.longest_distance} must be above half of distance_buckets="
                f"{self.distance_buckets}: that many distances have a bucket each"
            )

    @property
    def derived(self) -> dict[str, Any]:
        """What fields that are None become."""
        return {"num_encoder_layers": self.num_layers}

    @property
    def most_cached(self) -> int:
        """How many tokens a cache may hold: distances have no end."""
        return 2**28

    @property
    def mlp(self) -> ModelConfig:
        """What `mlp_block` reads of a layer."""
        return ModelConfig(
            vocab_size=None, num_layers=self.num_layers, embed_dim=self.embed_dim, num_heads=self.num_heads,
            head_dim=self.head_dim, mlp_dim=self.mlp_dim, activation=self.activation,
            gated_mlp=self.gated_mlp, mlp_bias=False, dtype=self.dtype, param_dtype=self.param_dtype,
        )  # fmt: skip

    def flops_per_token(self, seq_len: int) -> int:
        """Count matmul FLOPs of a training step per token of the decoder, the context as long as the text.

        As `ModelConfig.flops_per_token` counts them; scores of the encoder, the decoder and between them.
        """
        encoder = self.num_encoder_layers * (self.layer_weights - 4 * self.embed_dim * self._heads_width)
        scores = 12 * self._heads_width * seq_len * (self.num_encoder_layers + 2 * self.num_layers)
        return super().flops_per_token(seq_len) + 6 * encoder + scores

    @property
    def _heads_width(self) -> int:
        return self.num_heads * self.head_dim


class Context(NamedTuple):
    """What the encoder made of a text, for the decoder to attend to."""

    hidden_BSD: jax.Array
    mask_BS: jax.Array  # False at padding


@declare.register
def declare_encoder_decoder(config: EncoderDecoderConfig) -> dict:
    """Return the declarations of an encoder-decoder; see `architecture.declare`."""
    V, D = config.known_vocab_size, config.embed_dim
    block = {"attn_norm": _norm(config), "attn": declare_heads(config)}
    cross = {"cross_norm": _norm(config), "cross": declare_heads(config)}
    mlp = {"mlp_norm": _norm(config), "mlp": _mlp(config)}
    return {
        "embed": {"tokens": Declaration((V, D), ("vocab", "embed"), ("vocab",), config.init_std)},
        "encoder": {
            "distances": _distances(config),
            "layers": stacked(config.num_encoder_layers, block | mlp),
            "final_norm": _norm(config),
        },
        "distances": _distances(config),
        "layers": stacked(config.num_layers, block | cross | mlp),
        "final_norm": _norm(config),
    } | declare_head(config)


def _norm(config) -> dict:
    return {"scale": Declaration((config.embed_dim,), ("embed",), mean=1.0)}


def _distances(config) -> Declaration:
    shape = (config.distance_buckets, config.num_heads)
    return Declaration(shape, ("buckets", "heads"), std=config.embed_dim**-0.5)


def declare_heads(config) -> dict:
    """Return one layer's parameters of attention, to the text itself or to the context."""
    D, H, K = config.embed_dim, config.num_heads, config.head_dim
    shape, names = (D, H, K), ("embed", "heads", "head_dim")
    return {
        # Scores are not scaled: the query's initialiser is.
        "query": Declaration(shape, names, ("embed",), (D * K) ** -0.5),
        "key": Declaration(shape, names, ("embed",), D**-0.5),
        "value": Declaration(shape, names, ("embed",), D**-0.5),
        "out": Declaration((H, K, D), (*names[1:], "embed"), ("heads", "head_dim"), (H * K) ** -0.5),
    }


def _mlp(config) -> dict:
    return {name: one._replace(std=one.shape[0] ** -0.5) for name, one in declare_mlp(config.mlp).items()}


def encode(
    config: EncoderDecoderConfig, params: dict, tokens_BS: jax.Array, mask_BS: jax.Array | None = None
) -> Context:
    """Return what the encoder makes of a text, for `trunk(context=...)` and `context_cache`.

    Args:
      tokens_BS: int [B, S].
      mask_BS: False at padding, on either side; None: there is none.

    Raises:
      UserError: ids that are fractions or, outside of jit, that the vocabulary does not have.
    """
    check_tokens(tokens_BS, config.known_vocab_size)
    mask_BS = jnp.ones(tokens_BS.shape, bool) if mask_BS is None else mask_BS
    S, own = tokens_BS.shape[1], params["encoder"]
    bias_HSS = distance_bias(config, own["distances"], jnp.arange(S, dtype=jnp.int32), S, bidirectional=True)
    allowed = mask_BS[:, None, None, :]

    def layer(params, x_BSD, index, kind, cache, *, key=None):
        del kind, key
        tap = Tap(None, index)
        normed_BSD = _normed(config, x_BSD, params["attn_norm"])
        query, *keys_values = _projected(config, params["attn"], normed_BSD, "query", "key", "value")
        x_BSD = x_BSD + _out(config, params["attn"], _mixed(query, *keys_values, bias_HSS, allowed))
        x_BSD = x_BSD + mlp_block(config.mlp, params["mlp"], _normed(config, x_BSD, params["mlp_norm"]), tap)
        return constrain(x_BSD, "batch", "sequence", None), {}, cache

    with jax.named_scope("encoder"):
        x_BSD, _, _ = run_layers(
            config, layer, own["layers"], _embed(config, params, tokens_BS), None, LayerCache,
            names=axes(config)["encoder"]["layers"],
        )  # fmt: skip
        return Context(normalize(x_BSD, own["final_norm"], "rmsnorm", config.norm_eps), mask_BS)


@capture.register
def _capture(
    config: EncoderDecoderConfig,
    params: dict,
    tokens_BT: jax.Array,
    sites: Sites | None,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    microbatches: int = 1,
    key: jax.Array | None = None,
    context: Context | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key  # nothing is dropped
    check_tokens(tokens_BT, config.known_vocab_size)
    if context is None:
        raise UserError(
            "an encoder-decoder needs a context; give context=models.encode(config, params, tokens)"
        )
    for name, given in (("positions", positions is not None), ("segment_ids", segment_ids is not None),
                        ("microbatches", microbatches > 1)):  # fmt: skip
        if given:
            raise UserError(f"an encoder-decoder takes no {name}; leave them out")
    check_sites(sites, SITES, "an encoder-decoder")
    T = tokens_BT.shape[1]
    place_T = jnp.arange(T, dtype=jnp.int32)
    bias_HTT = distance_bias(config, params["distances"], place_T, T, bidirectional=False)
    allowed = (place_T[:, None] >= place_T[None])[None, None]

    def cross(index, params, query_BTHK):
        del index
        hidden_BSD = context.hidden_BSD.astype(config.dtype)
        key_value = _projected(config, params, hidden_BSD, "key", "value")
        return _mixed(query_BTHK, *key_value, None, context.mask_BS[:, None, None, :])

    hidden_BTD, captured, _ = _run(config, params, tokens_BT, sites, None, bias_HTT, allowed, cross)
    return hidden_BTD, captured


@decode.register
def _decode(
    config: EncoderDecoderConfig,
    params: dict,
    tokens_BT: jax.Array,
    cache: dict,
    *,
    mask_BT: jax.Array | None = None,
) -> tuple[jax.Array, dict]:
    check_tokens(tokens_BT, config.known_vocab_size)
    T, S = tokens_BT.shape[1], cache["valid"].shape[1]
    if T > S:
        raise UserError(f"{T} tokens do not fit a cache of {S}")
    mask_BT = jnp.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
    valid_BS = jax.lax.dynamic_update_slice_in_dim(cache["valid"], mask_BT, cache["length"], axis=1)
    cache = cache | {"valid": valid_BS}
    # Padding is on the left: slots are as far apart as positions.
    place_T = cache["length"] + jnp.arange(T, dtype=jnp.int32)
    bias_HTS = distance_bias(config, params["distances"], place_T, S, bidirectional=False)

    context = cache["context"]

    def cross(index, params, query_BTHK):
        del params
        return context.layer(index).attend(query_BTHK, None, 0, scale=1.0, causal=False)[0]

    hidden_BTD, _, cache = _run(config, params, tokens_BT, None, cache, bias_HTS, None, cross)
    length = cache["length"] + T
    hidden_BTD = jnp.where(length <= S, hidden_BTD, jnp.nan)  # as a transformer's
    return hidden_BTD, cache | {"length": length}


def _run(config, params, tokens_BT, sites, cache, bias_HTS, allowed, cross):
    """Run the decoder; return (hidden_BTD, captured, cache).

    Args:
      cross: (index of a layer, its parameters, queries) -> what these find in the context.
    """
    outer = Tap(sites)

    def layer(params, x_BTD, index, kind, cache, *, key=None):
        del kind, key
        tap = Tap(sites, index)
        x_BTD = tap("resid_pre", x_BTD)
        normed_BTD = _normed(config, x_BTD, params["attn_norm"])
        query, key, value = _projected(config, params["attn"], normed_BTD, "query", "key", "value")
        seen = allowed
        if cache is not None:
            cache = cache.write(key, value)
            key, value, seen = cache.key_BSGK, cache.value_BSGK, cache.visible(x_BTD.shape[1], 0)[:, None]
        x_BTD = x_BTD + _out(config, params["attn"], _mixed(query, key, value, bias_HTS, seen))
        normed_BTD = _normed(config, x_BTD, params["cross_norm"])
        [query] = _projected(config, params["cross"], normed_BTD, "query")
        x_BTD = x_BTD + _out(config, params["cross"], cross(index, params["cross"], query))
        normed_BTD = tap("mlp_in", _normed(config, x_BTD, params["mlp_norm"]))
        x_BTD = x_BTD + mlp_block(config.mlp, params["mlp"], normed_BTD, tap)
        return tap("resid_post", constrain(x_BTD, "batch", "sequence", None)), tap.kept(), cache

    x_BTD = outer("embed", _embed(config, params, tokens_BT))
    x_BTD, captured, cache = run_layers(config, layer, params["layers"], x_BTD, cache, LayerCache)
    hidden_BTD = normalize(x_BTD, params["final_norm"], "rmsnorm", config.norm_eps)
    if config.tie_embeddings:
        hidden_BTD = hidden_BTD * jnp.asarray(config.embed_dim**-0.5, hidden_BTD.dtype)
    return outer("final", hidden_BTD), outer.captured | captured, cache


def _embed(config, params, tokens_BT):
    with jax.named_scope("embed"):
        names = axes(config)["embed"]["tokens"]
        x_BTD = look_up(params["embed"]["tokens"], names, tokens_BT, config.dtype)
        return constrain(x_BTD, "batch", "sequence", None)


def _normed(config, x_BTD, params):
    return constrain(normalize(x_BTD, params, "rmsnorm", config.norm_eps), "batch", None, None)


def _projected(config, params, x_BTD, *names):
    heads = linears(x_BTD, params, declare_heads(config), *names)
    return [constrain(x_BTHK, "batch", None, "heads", None) for x_BTHK in heads]


def _mixed(query_BTHK, key_BSHK, value_BSHK, bias_HTS, allowed):
    """Return values mixed by attention, [B, T, H, K]; scores of all pairs are in memory."""
    scores_BHTS = kernel.attention_scores(query_BTHK, key_BSHK, 1.0)
    if bias_HTS is not None:
        scores_BHTS = scores_BHTS + bias_HTS[None].astype(scores_BHTS.dtype)
    probs_BHTS = kernel.attention_probs(scores_BHTS, allowed)
    return kernel.mix(probs_BHTS, value_BSHK, query_BTHK.dtype)


def _out(config, params, mixed_BTHK):
    mixed_BTHK = constrain(mixed_BTHK, "batch", None, "heads", None)
    return linear(mixed_BTHK, params, declare_heads(config), "out")
