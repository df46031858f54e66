"""Mamba (Gu and Dao, arXiv 2312.00752): layers of a gated selective scan, in place of attention and MLP.

A layer adds out(scan(silu(conv(in x)))) * silu(gate x)) of its normed input x. Its step sizes, and what the
state takes in and gives out, are chosen token by token. Besides "mlp", the inner width F, its axes are
"state" (N numbers a channel), "taps" (of the convolution), "delta_rank" and "select" (of what is chosen).

The cache has one size whatever the text's length: {"conv": [L, B, taps - 1, F], the last inputs of the
convolution, "state": [L, B, F, N] in float32, or tuples of L such arrays; "length": int32 [], tokens read}.
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxllm_kernels.selective_scan import selective_scan, selective_step

from jaxllm.config import Count, Positive, Range, Size
from jaxllm.errors import UserError
from jaxllm.models.architecture import (
    Declaration,
    cache_axes,
    capture,
    declare,
    decode,
    embed_tokens,
    init_cache,
    run_span,
    stacked,
)
from jaxllm.models.config import DTYPES, GROUP_HEADS, REMAT, LanguageModel, Layers
from jaxllm.models.declarations import declare_head
from jaxllm.models.ids import check_tokens
from jaxllm.models.layers import run_layers
from jaxllm.models.linear import linear, linears
from jaxllm.models.look_up import look_up
from jaxllm.models.norms import normalize
from jaxllm.models.sites import Sites, Tap, check_sites
from jaxllm.models.vocab_groups import VocabGroups
from jaxllm.parallel import constrain, on_shards, spread

SITES = ("embed", "resid_pre", "resid_post", "final")
_LEAST_STEP, _LARGEST_STEP = 1e-3, 0.1  # of the first step sizes (the paper, section 3.6)


@dataclass(frozen=True)
class MambaConfig(LanguageModel):
    """A Mamba. The defaults are Mamba-130M.

    Sizes given as None are replaced by their derived defaults when the config is made.

    Raises:
      UserError: a value that its field may not hold.

    Examples:
      >>> config = MambaConfig()
      >>> config.inner_dim, config.delta_rank, config.num_params
      (1536, 48, 129135360)
    """

    vocab_size: Size | None = 50280  # None: not known yet; a training run takes its tokenizer's
    context_length: Size = 2048  # what it reads at once when it is scored; no weight depends on it
    num_layers: Layers = 24
    embed_dim: Size = 768
    inner_dim: Size | None = None  # None: 2 * embed_dim
    state_dim: Size = 16  # numbers that each channel remembers
    conv_width: Annotated[int, Range(2, 64)] = 4  # tokens that the convolution sees
    delta_rank: Count | None = None  # of the step sizes' projection; None: embed_dim / 16, rounded up
    conv_bias: bool = True
    proj_bias: bool = False  # of the projections from and to the residual stream
    norm_eps: Positive = 1e-5
    tie_embeddings: bool = True  # the head is the token table
    vocab_groups: VocabGroups | None = None  # predict a token's group, then the token in the group
    group_head: Literal[GROUP_HEADS] = "hidden"  # with vocab_groups alone
    init_std: Positive = 0.02  # of the token table; see `declare_block` for the rest
    dtype: Literal[DTYPES] = "float32"  # of matmuls; the stream and the scan are float32
    param_dtype: Literal[DTYPES] = "float32"
    remat: Literal[REMAT] = "none"  # what each layer keeps for the backward pass
    scan_implementation: Literal["xla", "pallas_tpu"] | None = None  # None: the fastest for the backend
    architecture: Literal["mamba"] = "mamba"

    @property
    def derived(self) -> dict[str, Any]:
        """What fields that are None become."""
        return {"inner_dim": 2 * self.embed_dim, "delta_rank": -(-self.embed_dim // 16)}

    @property
    def most_cached(self) -> int:
        """How many tokens a cache may hold: a state takes any number."""
        return 2**28


@declare.register
def declare_mamba(config: MambaConfig) -> dict:
    """Return the declarations of a Mamba; see `architecture.declare`."""
    V, D = config.known_vocab_size, config.embed_dim
    norm = {"scale": Declaration((D,), ("embed",), mean=1.0)}
    return {
        "embed": {"tokens": Declaration((V, D), ("vocab", "embed"), ("vocab",), config.init_std)},
        "layers": stacked(config.num_layers, {"norm": norm, "mamba": declare_block(config)}),
        "final_norm": norm,
    } | declare_head(config)


def declare_block(config: MambaConfig) -> dict:
    """Return one layer's parameters of `mamba_block`, drawn as the paper's code draws them.

    Matrices have the variance of torch's linear layers, 1 / (3 inputs); that of the output is divided by
    the number of layers. A step size begins as softplus of its bias, log-uniform in [0.001, 0.1], and each
    channel's A as -1, ..., -N. The convolution is no matrix product: no weight decay, no adapter.
    """
    D, F, N, W = config.embed_dim, config.inner_dim, config.state_dim, config.conv_width
    R, std = config.delta_rank, (3 * D) ** -0.5
    selected, out_std = R + 2 * N, (3 * F * config.num_layers) ** -0.5
    tree = {
        "in": Declaration((D, F), ("embed", "mlp"), ("embed",), std),
        "gate": Declaration((D, F), ("embed", "mlp"), ("embed",), std),
        "conv": Declaration((F, W), ("mlp", "taps"), draw=_uniform(W)),
        "select": Declaration((F, selected), ("mlp", "select"), ("mlp",), (3 * F) ** -0.5),
        "delta": Declaration((R, F), ("delta_rank", "mlp"), ("delta_rank",), draw=_uniform(R)),
        "step_bias": Declaration((F,), ("mlp",), draw=_step_bias),
        "A_log": Declaration((F, N), ("mlp", "state"), draw=_A_log),
        "skip": Declaration((F,), ("mlp",), mean=1.0),
        "out": Declaration((F, D), ("mlp", "embed"), ("mlp",), out_std),
    }
    if config.conv_bias:
        tree["conv_shift"] = Declaration((F,), ("mlp",), draw=_uniform(W))
    if config.proj_bias:
        tree["in_bias"] = Declaration((F,), ("mlp",))
        tree["gate_bias"] = Declaration((F,), ("mlp",))
        tree["out_bias"] = Declaration((D,), ("embed",))
    return tree


@functools.cache
def _uniform(inputs: int):
    bound = inputs**-0.5
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _step_bias(key, shape):
    log_step = jax.random.uniform(key, shape, jnp.float32, math.log(_LEAST_STEP), math.log(_LARGEST_STEP))
    step = jnp.exp(log_step)
    return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


def _A_log(key, shape):
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape)


@init_cache.register
def init_states(config: MambaConfig, batch_size: int, max_length: int, *, apart: bool = False) -> dict:
    """Return an empty cache of a Mamba, whatever `max_length` is; see `architecture.init_cache`."""
    del max_length
    B, F = batch_size, config.inner_dim

    def empty(shape, dtype):
        if apart:
            return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
        return jnp.zeros((config.num_layers, *shape), dtype)

    return {
        "conv": empty((B, config.conv_width - 1, F), config.dtype),
        "state": empty((B, F, config.state_dim), "float32"),
        "length": jnp.zeros((), jnp.int32),
    }


@cache_axes.register
def state_axes(config: MambaConfig) -> dict:
    """Return the names of a Mamba's cache; see `architecture.cache_axes`."""
    del config
    conv, state = ("layers", "batch", None, "mlp"), ("layers", "batch", "mlp", "state")
    return {"conv": conv, "state": state, "length": ()}


@capture.register
def _capture(
    config: MambaConfig,
    params: dict,
    tokens_BT: jax.Array,
    sites: Sites | None,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    microbatches: int = 1,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key  # nothing is dropped
    check_tokens(tokens_BT, config.known_vocab_size)
    if positions is not None:
        raise UserError("positions were given to a Mamba, which has none; leave them out")
    check_sites(sites, SITES, "a Mamba")
    hidden_BTD, captured, _ = _run(
        config, params, tokens_BT, sites, None, microbatches, segment_ids_BT=segment_ids, mask_BT=None
    )
    return hidden_BTD, captured


@decode.register
def _decode(
    config: MambaConfig, params: dict, tokens_BT: jax.Array, cache: dict, *, mask_BT: jax.Array | None = None
) -> tuple[jax.Array, dict]:
    check_tokens(tokens_BT, config.known_vocab_size)
    hidden_BTD, _, cache = _run(config, params, tokens_BT, None, cache, segment_ids_BT=None, mask_BT=mask_BT)
    return hidden_BTD, cache | {"length": cache["length"] + tokens_BT.shape[1]}


@run_span.register
def _run_span(
    config: MambaConfig,
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
    del key, positions  # which the other parts of a hybrid may have
    x_BTD = x_BTD.astype("float32")
    if span.start == 0:
        x_BTD = Tap(sites)("embed", x_BTD)
    layer = functools.partial(_layer, config, sites=sites)
    x_BTD, _, cache = run_layers(
        config, layer, params["layers"], x_BTD, cache, _LayerState,
        microbatches=microbatches, first=span.start, segment_ids_BT=segment_ids, mask_BT=mask_BT,
    )  # fmt: skip
    if span.stop == config.num_layers:
        x_BTD = normalize(x_BTD, params["final_norm"], "rmsnorm", config.norm_eps).astype(config.dtype)
    return x_BTD, cache


@embed_tokens.register
def _embed_tokens(config: MambaConfig, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    # The stream is float32, as in the paper's models: a state remembers what rounding added to it.
    return look_up(table_VD, ("vocab", "embed"), tokens_BT, "float32")


def _run(config, params, tokens_BT, sites, cache, microbatches=1, **rows):
    """Embed, scan the layers, normalise; return (hidden_BTD, captured, cache)."""
    outer = Tap(sites)
    with jax.named_scope("embed"):
        x_BTD = embed_tokens(config, params["embed"]["tokens"], tokens_BT)
        x_BTD = outer("embed", constrain(x_BTD, "batch", "sequence", None))
    layer = functools.partial(_layer, config, sites=sites)
    x_BTD, captured, cache = run_layers(
        config, layer, params["layers"], x_BTD, cache, _LayerState, microbatches=microbatches, **rows
    )
    hidden_BTD = normalize(x_BTD, params["final_norm"], "rmsnorm", config.norm_eps).astype(config.dtype)
    return outer("final", hidden_BTD), outer.captured | captured, cache


def _layer(config, params, x_BTD, index, kind, cache, *, sites, segment_ids_BT, mask_BT, key=None):
    """Run one layer; return (x_BTD, captured, cache)."""
    del kind, key
    tap = Tap(sites, index)
    x_BTD = tap("resid_pre", x_BTD)
    normed_BTD = normalize(x_BTD, params["norm"], "rmsnorm", config.norm_eps).astype(config.dtype)
    normed_BTD = constrain(normed_BTD, "batch", None, None)
    with jax.named_scope("mamba"):
        out_BTD, cache = mamba_block(config, params["mamba"], normed_BTD, segment_ids_BT, mask_BT, cache)
    x_BTD = constrain(x_BTD + out_BTD.astype(x_BTD.dtype), "batch", "sequence", None)
    return tap("resid_post", x_BTD), tap.kept(), cache


def mamba_block(
    config: MambaConfig,
    params: dict,
    x_BTD: jax.Array,
    segment_ids_BT: jax.Array | None = None,
    mask_BT: jax.Array | None = None,
    cache: "_LayerState | None" = None,
) -> tuple[jax.Array, "_LayerState | None"]:
    """Return what the block adds to the residual stream, [B, T, D], and the cache written to.

    Args:
      params: one layer's, of the shapes that `declare_block` says.
      x_BTD: the normed residual stream, in `config.dtype`.
      segment_ids_BT: documents that must not see each other.
      mask_BT: False at padding on the left, which leaves the state as it is and is in no convolution.
      cache: of earlier tokens.
    """
    declared, wide = declare_block(config), jnp.float32
    u_BTF, gate_BTF = linears(x_BTD, params, declared, "in", "gate")
    u_BTF, gate_BTF = (constrain(x, "batch", None, "mlp") for x in (u_BTF, gate_BTF))
    if mask_BT is not None:
        u_BTF = jnp.where(mask_BT[..., None], u_BTF, 0)
    before, state_BFN = (None, None) if cache is None else (cache.conv_BWF, cache.state_BFN)
    if before is None:
        before = jnp.zeros((len(u_BTF), config.conv_width - 1, config.inner_dim), u_BTF.dtype)
    padded_BSF = jnp.concatenate([before, u_BTF], axis=1)
    if mask_BT is not None:  # padding goes before the last inputs of earlier calls
        padding_B1 = jnp.sum(~mask_BT, axis=1, keepdims=True, dtype=jnp.int32)
        slot_1S = jnp.arange(padded_BSF.shape[1], dtype=jnp.int32)[None]
        for place in range(before.shape[1]):
            here_BS1 = (slot_1S == padding_B1 + place)[..., None]
            padded_BSF = jnp.where(here_BS1, before[:, place, None], padded_BSF)
    last_BWF = padded_BSF[:, u_BTF.shape[1] :]
    u_BTF = _convolve(padded_BSF, params["conv"], params.get("conv_shift"), segment_ids_BT)
    selected_BTS = constrain(linear(u_BTF, params, declared, "select"), "batch", None, None)
    R, N = config.delta_rank, config.state_dim
    low_BTR, B_BTN, C_BTN = jnp.split(selected_BTS, (R, R + N), axis=-1)
    step_BTF = linear(low_BTR, params, declared, "delta").astype(wide)
    delta_BTF = jax.nn.softplus(step_BTF + params["step_bias"].astype(wide)[None, None])
    if mask_BT is not None:
        delta_BTF = jnp.where(mask_BT[..., None], delta_BTF, 0)
    A_FN, skip_F = -jnp.exp(params["A_log"].astype(wide)), params["skip"].astype(wide)
    y_BTF, state_BFN = _scan(config, u_BTF, delta_BTF, A_FN, B_BTN, C_BTN, skip_F, state_BFN, segment_ids_BT)
    out_BTD = linear(y_BTF * jax.nn.silu(gate_BTF), params, declared, "out")
    return out_BTD, None if cache is None else cache.write(last_BWF, state_BFN)


@jax.checkpoint  # a shifted copy for each tap would be saved
def _convolve(padded_BSF, taps_FW, shift_F, segment_ids_BT):
    """Return silu of each channel's weighted sum of its last W inputs: [B, T, F] of [B, W - 1 + T, F]."""
    W = taps_FW.shape[1]
    T, taps_WF = padded_BSF.shape[1] - W + 1, taps_FW.astype(jnp.float32).T
    y_BTF = jnp.zeros((), jnp.float32) if shift_F is None else shift_F.astype(jnp.float32)[None, None]
    for back in range(W):
        x_BTF = padded_BSF[:, W - 1 - back :][:, :T].astype(jnp.float32)
        if segment_ids_BT is not None and back:
            ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (back, 0)), mode="edge")[:, :T]
            x_BTF = jnp.where((ids_BT == segment_ids_BT)[..., None], x_BTF, 0)
        y_BTF = y_BTF + x_BTF * taps_WF[W - 1 - back][None, None]
    return jax.nn.silu(y_BTF).astype(padded_BSF.dtype)


def _scan(config, u_BTF, delta_BTF, A_FN, B_BTN, C_BTN, skip_F, state_BFN, segment_ids_BT):
    """Return (y [B, T, F], last state [B, F, N]), on whatever mesh is in force."""
    if u_BTF.shape[1] == 1 and state_BFN is not None:
        u_BF, delta_BF, B_BN, C_BN = (x[:, 0] for x in (u_BTF, delta_BTF, B_BTN, C_BTN))
        y_BF, state_BFN = selective_step(u_BF, delta_BF, A_FN, B_BN, C_BN, state_BFN, skip_D=skip_F)
        return y_BF[:, None], state_BFN

    def scan(u, delta, A, B, C, skip, state, ids):
        return selective_scan(
            u, delta, A, B, C, skip_D=skip, state_BDN=state, segment_ids_BT=ids,
            implementation=config.scan_implementation,
        )  # fmt: skip

    arrays = (u_BTF, delta_BTF, A_FN, B_BTN, C_BTN, skip_F, state_BFN, segment_ids_BT)
    spec = spread(("batch", None, "mlp"), u_BTF.shape)
    if spec is None:
        return scan(*arrays)
    batch, _, channels = spec
    narrow, of_state = PartitionSpec(batch, None, None), PartitionSpec(batch, channels, None)
    of_channels = PartitionSpec(channels)
    specs = (spec, spec, of_channels, narrow, narrow, of_channels, of_state, PartitionSpec(batch, None))
    return on_shards(scan, specs, (spec, of_state))(*arrays)


class _LayerState(NamedTuple):
    """The cache seen from one layer; layers that are scanned share the stacks, and write in place."""

    conv: jax.Array  # [L, B, W - 1, F], or [B, W - 1, F]: this layer's own
    state: jax.Array
    layer: jax.Array | None  # index into L; None where there is none

    NAMES = ("conv", "state")

    @classmethod
    def of(cls, cache: dict, arrays, index) -> "_LayerState":
        """Return a layer's view: of its own arrays, or of the stacks of all layers."""
        return cls(*arrays, None if isinstance(cache["conv"], tuple) else index)

    @property
    def arrays(self) -> tuple[jax.Array, jax.Array]:
        """Return what `of` was given, written to."""
        return self.conv, self.state

    @property
    def conv_BWF(self) -> jax.Array:
        """Return the last inputs of this layer's convolution."""
        return self._mine(self.conv)

    @property
    def state_BFN(self) -> jax.Array:
        """Return this layer's state."""
        return self._mine(self.state)

    def _mine(self, stack):
        if self.layer is None:
            return stack
        return jax.lax.dynamic_index_in_dim(stack, self.layer, keepdims=False)

    def write(self, conv_BWF: jax.Array, state_BFN: jax.Array) -> "_LayerState":
        """Put this layer's new arrays in the place of its old ones."""

        def written(stack, new):
            if self.layer is None:
                return new.astype(stack.dtype)
            return jax.lax.dynamic_update_index_in_dim(stack, new.astype(stack.dtype), self.layer, 0)

        return self._replace(conv=written(self.conv, conv_BWF), state=written(self.state, state_BFN))
