"""Striped models: a decoder whose layers are a pattern of attention, MLP and Mamba blocks.

Each block adds to the residual stream what it makes of the stream's norm. A layer is one round of the
pattern, so that a stack of rounds is scanned as any other; MambaFormer (as in mad-lab, arXiv 2403.17844) is
one round of mamba, attention, mamba, attention, mamba. Attention has no positions of its own: a Mamba block
below it tells the order. `ModelConfig` and `MambaConfig` say what blocks are; nothing is cached yet.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxllm.config import Positive, Size
from jaxllm.errors import UserError
from jaxllm.models.architecture import Declaration, capture, declare, stacked
from jaxllm.models.attention import attention_block
from jaxllm.models.config import DTYPES, GROUP_HEADS, REMAT, LanguageModel, Layers, ModelConfig
from jaxllm.models.declarations import declare_attention, declare_head, declare_mlp
from jaxllm.models.ids import check_tokens
from jaxllm.models.layers import run_layers
from jaxllm.models.look_up import look_up
from jaxllm.models.mamba import MambaConfig, declare_block, mamba_block
from jaxllm.models.mlp import mlp_block
from jaxllm.models.norms import normalize
from jaxllm.models.parameters import axes
from jaxllm.models.sites import Sites, Tap, check_sites
from jaxllm.models.vocab_groups import VocabGroups
from jaxllm.parallel import constrain

BLOCKS = ("attention", "mlp", "mamba")
MAMBAFORMER = ("mamba", "attention", "mamba", "attention", "mamba")
SITES = ("embed", "resid_pre", "resid_post", "final")


@dataclass(frozen=True)
class StripedConfig(LanguageModel):
    """A decoder of a repeating pattern of blocks.

    Raises:
      UserError: a pattern that is empty, or sizes that do not divide.

    Examples:
      >>> config = StripedConfig(vocab_size=16, embed_dim=64, num_heads=4, pattern=MAMBAFORMER, num_layers=1)
      >>> config.num_params
      132096
    """

    vocab_size: Size | None = 50280  # None: not known yet; a training run takes its tokenizer's
    context_length: Size = 2048  # what it reads at once when it is scored; no weight depends on it
    pattern: tuple[Literal[BLOCKS], ...] = ("mamba", "attention", "mlp")
    num_layers: Layers = 8  # rounds of the pattern
    embed_dim: Size = 768
    num_heads: Size = 12
    mlp_dim: Size | None = None  # None: 4 * embed_dim
    inner_dim: Size | None = None  # of a Mamba block; None: 2 * embed_dim
    state_dim: Size = 16
    tie_embeddings: bool = True  # the head is the token table
    vocab_groups: VocabGroups | None = None  # predict a token's group, then the token in the group
    group_head: Literal[GROUP_HEADS] = "hidden"  # with vocab_groups alone
    init_std: Positive = 0.02  # of tables, attention and MLP; see `mamba.declare_block` for its blocks
    dtype: Literal[DTYPES] = "float32"  # of matmuls; the stream and the scan are float32
    param_dtype: Literal[DTYPES] = "float32"
    remat: Literal[REMAT] = "none"  # what each layer keeps for the backward pass
    architecture: Literal["striped"] = "striped"

    def __post_init__(self):
        super().__post_init__()
        if not self.pattern:
            raise UserError(f"pattern is empty; name one or more of {', '.join(BLOCKS)}")
        _ = self.transformer  # its sizes are checked now

    @property
    def derived(self) -> dict[str, Any]:
        """What fields that are None become."""
        return {"mlp_dim": 4 * self.embed_dim, "inner_dim": 2 * self.embed_dim}

    @property
    def why_not_decode(self) -> str | None:
        """Say why the model cannot predict tokens one by one; None: it can."""
        return "is striped, of which nothing is cached yet"

    @property
    def transformer(self) -> ModelConfig:
        """Say what its attention and MLP blocks are."""
        return ModelConfig(
            **self._shared, num_heads=self.num_heads, mlp_dim=self.mlp_dim, position="none", norm="rmsnorm",
            qkv_bias=False, out_bias=False, mlp_bias=False,
        )  # fmt: skip

    @property
    def mamba(self) -> MambaConfig:
        """Say what its Mamba blocks are."""
        return MambaConfig(**self._shared, inner_dim=self.inner_dim, state_dim=self.state_dim)

    @property
    def _shared(self) -> dict[str, Any]:
        names = ("vocab_size", "embed_dim", "init_std", "dtype", "param_dtype")
        blocks = self.num_layers * len(self.pattern)  # what blocks add begins smaller, the more there are
        return {name: getattr(self, name) for name in names} | {"num_layers": blocks}

    def flops_per_token(self, seq_len: int) -> int:
        """Count matmul FLOPs of a training step per token; attention as `ModelConfig.flops_per_token`."""
        attention = self.num_layers * self.pattern.count("attention")
        return super().flops_per_token(seq_len) + 12 * self.embed_dim * seq_len * attention


@declare.register
def declare_striped(config: StripedConfig) -> dict:
    """Return the declarations of a striped model; see `architecture.declare`."""
    V, D = config.known_vocab_size, config.embed_dim
    norm = {"scale": Declaration((D,), ("embed",), mean=1.0)}
    of = {
        "attention": lambda: declare_attention(config.transformer),
        "mlp": lambda: declare_mlp(config.transformer),
        "mamba": lambda: declare_block(config.mamba),
    }
    blocks = {name: {"norm": norm, kind: of[kind]()} for name, kind in _places(config)}
    return {
        "embed": {"tokens": Declaration((V, D), ("vocab", "embed"), ("vocab",), config.init_std)},
        "layers": stacked(config.num_layers, blocks),
        "final_norm": norm,
    } | declare_head(config)


def _places(config):
    """Return (a name, the kind) of each block of a round."""
    return [(f"block_{at}", kind) for at, kind in enumerate(config.pattern)]


@capture.register
def _capture(
    config: StripedConfig,
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
        raise UserError("positions were given to a striped model, which has none; leave them out")
    check_sites(sites, SITES, "a striped model")
    outer = Tap(sites)
    with jax.named_scope("embed"):
        x_BTD = look_up(params["embed"]["tokens"], axes(config)["embed"]["tokens"], tokens_BT, "float32")
        x_BTD = outer("embed", constrain(x_BTD, "batch", "sequence", None))
    layer = functools.partial(_layer, config, sites=sites)
    rows = dict(microbatches=microbatches, segment_ids_BT=segment_ids)
    x_BTD, captured, _ = run_layers(config, layer, params["layers"], x_BTD, None, None, **rows)
    hidden_BTD = normalize(x_BTD, params["final_norm"], "rmsnorm", _EPS).astype(config.dtype)
    return outer("final", hidden_BTD), outer.captured | captured


_EPS = 1e-5


def _layer(config, params, x_BTD, index, kind, cache, *, sites, segment_ids_BT, key=None):
    """Run one round of the pattern; return (x_BTD, captured, no cache)."""
    del kind, key
    tap, silent, transformer = Tap(sites, index), Tap(), config.transformer
    x_BTD = tap("resid_pre", x_BTD)
    for name, block in _places(config):
        one = params[name]
        read_BTD = normalize(x_BTD, one["norm"], "rmsnorm", _EPS).astype(config.dtype)
        read_BTD = constrain(read_BTD, "batch", None, None)
        with jax.named_scope(block):
            match block:
                case "attention":
                    added_BTD, _ = attention_block(
                        transformer, one[block], read_BTD, silent, window=0, segment_ids_BT=segment_ids_BT
                    )
                case "mlp":
                    added_BTD = mlp_block(transformer, one[block], read_BTD, silent)
                case "mamba":
                    added_BTD, _ = mamba_block(config.mamba, one[block], read_BTD, segment_ids_BT)
        x_BTD = constrain(x_BTD + added_BTD.astype(x_BTD.dtype), "batch", "sequence", None)
    return tap("resid_post", x_BTD), tap.kept(), cache
