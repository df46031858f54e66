"""The frozen description of a model: sizes, normalisation, positions, attention, precision; and its base."""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from jaxllm.config import Config, Positive, Range, Size
from jaxllm.errors import UserError, brief, unknown
from jaxllm.models.architecture import declare, leaves
from jaxllm.models.disentangled import Disentangled
from jaxllm.models.rotary import RopeScaling
from jaxllm.models.vocab_groups import VocabGroups

ACTIVATIONS = ("gelu_tanh", "gelu", "silu", "relu")
NORMS = ("layernorm", "rmsnorm", "rmsnorm_scalar")
POSITIONS = ("learned", "rotary", "disentangled", "none")
# A block reads the stream's norm; "sandwich": what it adds is normed too; "post": the stream is, once it is
# added, and there is no final norm.
NORM_PLACES = ("pre", "sandwich", "post")
# Logits of the vocabulary, or those after a dense layer, the activation and a norm, with a bias ("masked":
# BERT's); logits of labels, of a text by a dense layer on its first token, or of each token.
HEADS = ("tokens", "masked", "text_labels", "token_labels")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION_IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu", "cudnn")
# What a group has of its own: a scale and shift of hidden states, or of its slots' logits, or nothing,
# all with one matrix shared by all groups; or one vector a token (the token table's, if that is tied).
GROUP_HEADS = ("hidden", "logits", "shared", "own")
# "full" keeps only each layer's input, "offload" the same in the host's memory; "dots" also keeps the
# results of weight matmuls. The others are jax.checkpoint_policies by their own names.
REMAT = (
    "none",
    "full",
    "offload",
    "dots",
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)

Layers = Annotated[int, Range(1, 4096)]
_Window = Annotated[int, Range(0, 2**28)]
_SinkLogit = Annotated[float, Range(or_value=-math.inf)]
_Part = Annotated[float, Range(most=1, above=0)]
_Types = Annotated[int, Range(0, 2**16)]
_Rate = Annotated[float, Range(0, below=1)]
_Attention = Literal[ATTENTION_IMPLEMENTATIONS]


@dataclass(frozen=True)
class LanguageModel(Config):
    """What generic code takes: a config of any architecture (see `jaxllm.models.architecture`).

    Its class says how it runs. It has at least vocab_size, context_length, num_layers, embed_dim,
    tie_embeddings, vocab_groups, group_head, init_std, dtype, param_dtype and remat.
    """

    architecture: ClassVar[str]  # the name of the class in a JSON file; a field where it is not "transformer"
    # What is so of a class that has no such field; see `ModelConfig`.
    head: ClassVar[str] = "tokens"
    labels: ClassVar[tuple[str, ...]] = ()
    start_id: ClassVar[int | None] = None  # of an encoder-decoder: what its answer to a source begins with

    def __post_init__(self):
        if self.vocab_groups is not None:  # in a JSON file a plain text
            object.__setattr__(self, "vocab_groups", VocabGroups.read(self.vocab_groups))
        super().__post_init__()
        if self.vocab_groups is not None and self.vocab_size is None:
            object.__setattr__(self, "vocab_size", self.vocab_groups.vocab_size)
        if self.vocab_groups is not None and self.vocab_groups.vocab_size != self.vocab_size:
            raise UserError(
                f"vocab_groups are of {self.vocab_groups.vocab_size} tokens, of another tokenizer than "
                f"vocab_size={self.vocab_size}; make them anew, or extend them if the vocabulary grew"
            )
        for name, value in self.derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @classmethod
    def kind_of(cls, values: dict[str, Any]) -> type["LanguageModel"]:
        """Return the class of the model that plain values describe."""
        kinds = {kind.architecture: kind for kind in LanguageModel.__subclasses__()}
        name = values.get("architecture", ModelConfig.architecture)
        if name not in kinds:
            raise unknown("architecture", str(name), kinds)
        return kinds[name]

    @property
    def known_vocab_size(self) -> int:
        """Return vocab_size, or raise a UserError where it is still None."""
        if self.vocab_size is None:
            raise UserError("vocab_size is None; set it to the size of the tokenizer")
        return self.vocab_size

    @property
    def most_positions(self) -> int | None:
        """How many tokens of a text the model has positions for; None: any number."""
        return None

    @property
    def why_not_decode(self) -> str | None:
        """Say why the model cannot predict tokens one by one; None: it can."""
        return None

    @property
    def most_cached(self) -> int:
        """How many tokens a cache may hold: past them, decoding reads the last `context_length` anew."""
        return self.context_length

    @property
    def num_params(self) -> int:
        """Count every stored number; a tied head counts once.

        Examples:
          >>> ModelConfig().num_params  # GPT-2 small
          124439808
        """
        return sum(one.size for one in leaves(declare(self)))

    @property
    def logits_per_token(self) -> int:
        """How many logits a training step computes for each token: V, or G + K with groups, or labels."""
        groups = self.vocab_groups
        if self.labels:
            return len(self.labels)
        return self.known_vocab_size if groups is None else groups.num_groups + groups.slots

    @property
    def layer_weights(self) -> int:
        """Count the weights of one layer that multiply a token."""
        return _layer_weights(self)

    def flops_per_token(self, seq_len: int) -> int:
        """Count matmul FLOPs of a training step (forward and backward) per token.

        6 for each weight that multiplies a token, the head included, the tables not.
        """
        del seq_len
        return 6 * (self.num_layers * self.layer_weights + self.embed_dim * self.logits_per_token)


@dataclass(frozen=True)
class ModelConfig(LanguageModel):
    """A transformer of one stack: a decoder, or an encoder. The defaults are GPT-2 small.

    Sizes given as None are replaced by their derived defaults when the config is made, so that a
    config holds plain numbers.

    Raises:
      UserError: a value that its field may not hold, or a size that does not divide.

    Examples:
      >>> config = ModelConfig(num_layers=2, embed_dim=64, num_heads=4)
      >>> config.head_dim, config.num_kv_heads, config.mlp_dim
      (16, 4, 256)
      >>> ModelConfig(embed_dim=64, num_heads=5)
      Traceback (most recent call last):
      ...
      jaxllm.errors.UserError: num_heads=5 does not divide embed_dim=64; ...
    """

    vocab_size: Size | None = 50257  # None: not known yet; a training run takes its tokenizer's
    context_length: Size = 1024  # longest text; the size of a learned position table
    num_layers: Layers = 12
    embed_dim: Size = 768
    num_heads: Size = 12
    num_kv_heads: Size | None = None  # None: num_heads; fewer is grouped-query attention
    head_dim: Size | None = None  # None: embed_dim / num_heads
    mlp_dim: Size | None = None  # None: 4 * embed_dim
    activation: Literal[ACTIVATIONS] = "gelu_tanh"
    gated_mlp: bool = False  # SwiGLU and its kin: activation(x gate) * (x in)
    norm: Literal[NORMS] = "layernorm"  # rmsnorm_scalar has one gain a layer
    norm_eps: Positive = 1e-5
    norm_bias: bool | None = None  # None: True for layernorm only
    norm_place: Literal[NORM_PLACES] = "pre"
    qk_norm: bool = False  # of each head's query and key, before they are rotated
    qkv_bias: bool = True
    out_bias: bool = True  # of attention's output projection
    mlp_bias: bool = True
    parallel_residual: bool = False  # both blocks read the layer's input, as in GPT-NeoX
    causal: bool = True  # a token sees those before it; False: all, as an encoder's do
    position: Literal[POSITIONS] = "learned"
    rope_theta: Positive = 10000.0
    windowed_rope_theta: Positive | None = None  # of layers with a window, unscaled; None: as the others
    rotary_fraction: _Part = 1.0  # of each head that is rotated
    rope_scaling: RopeScaling = RopeScaling()  # of its frequencies, for longer texts
    disentangled: Disentangled = Disentangled()  # with position="disentangled" alone
    tie_embeddings: bool = True  # the head is the token table
    scale_embeddings: bool = False  # tokens' vectors times sqrt(embed_dim)
    num_token_types: _Types = 0  # kinds of tokens, each with a vector that is added to theirs
    embed_norm: bool = False  # of the sum of a token's vectors
    head: Literal[HEADS] = "tokens"
    labels: tuple[str, ...] = ()  # their names, in the order of their logits
    label_activation: Literal[("tanh", *ACTIVATIONS)] = "tanh"  # of text_labels' dense layer
    vocab_groups: VocabGroups | None = None  # predict a token's group, then the token in the group
    group_head: Literal[GROUP_HEADS] = "hidden"  # with vocab_groups alone
    attention_scale: Positive | None = None  # None: 1 / sqrt(head_dim)
    windows: tuple[_Window, ...] = (0,)  # keys a query sees, repeated over layers; 0: all before it
    sink_logit: _SinkLogit | Literal["learned"] = -math.inf  # -inf: softmax; 0: softmax-1
    dropout: _Rate = 0.0  # in training: of embeddings, attention probabilities and what blocks add
    init_std: Positive = 0.02
    dtype: Literal[DTYPES] = "float32"  # of matmuls and activations
    param_dtype: Literal[DTYPES] = "float32"
    remat: Literal[REMAT] = "none"  # what each layer keeps for the backward pass
    attention_implementation: _Attention | None = None  # None: the fastest for the backend

    architecture: ClassVar[str] = "transformer"

    def __post_init__(self):
        no_head_dim = self.head_dim is None
        super().__post_init__()
        if no_head_dim and self.embed_dim % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}; "
                "change one of them or set head_dim"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
        if self.position == "rotary" and (self.rotary_dim % 2 or not self.rotary_dim):
            part = "" if self.rotary_fraction == 1 else f" with rotary_fraction={self.rotary_fraction}"
            raise UserError(
                f"rotary positions need an even head_dim, not {self.head_dim}{part}: they rotate pairs, and "
                f"{self.rotary_dim} numbers of a head do not make any or leave one over"
            )
        if self.norm_place == "post" and self.parallel_residual:
            raise UserError(
                "norm_place='post' norms the stream after each block, and parallel_residual=True adds both "
                "at once; change one of them"
            )
        if not self.causal and any(self.windows):
            raise UserError(
                f"windows={brief(self.windows)} look back, and causal=False looks both ways; set one of them"
            )
        if self.position == "disentangled" and self.num_kv_heads != self.num_heads:
            raise UserError(
                f"num_kv_heads={self.num_kv_heads}: position='disentangled' needs as many as num_heads="
                f"{self.num_heads}"
            )
        self._check_head()
        if not self.windows or self.num_layers % len(self.windows):
            raise UserError(
                f"windows={brief(self.windows)} must hold a number of sizes that divides "
                f"num_layers={self.num_layers}"
            )

    def _check_head(self):
        if self.head.endswith("_labels") != bool(self.labels):
            wanted = "needs some" if not self.labels else "takes none"
            raise UserError(f"labels={brief(self.labels)}: head='{self.head}' {wanted}; change one of them")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"labels={brief(self.labels)} hold a name twice")
        if self.head != "tokens" and self.vocab_groups is not None:
            raise UserError(f"vocab_groups go with head='tokens', not head='{self.head}'; set one of them")

    @property
    def derived(self) -> dict[str, Any]:
        """What fields that are None become."""
        return {
            "head_dim": self.embed_dim // self.num_heads,
            "num_kv_heads": self.num_heads,
            "mlp_dim": 4 * self.embed_dim,
            "norm_bias": self.norm == "layernorm",
        }

    @property
    def most_positions(self) -> int | None:
        """How many tokens of a text the model has positions for; None: any number."""
        return self.context_length if self.position == "learned" else None

    @property
    def why_not_decode(self) -> str | None:
        """Say why the model cannot predict tokens one by one; None: it can."""
        if not self.causal:
            return "has causal=False: its tokens see those after them"
        if self.position == "disentangled":
            return "has position='disentangled', for which no keys are cached"
        return f"has head='{self.head}', which predicts labels" if self.labels else None

    @property
    def score_scale(self) -> float:
        """Return what attention's products are multiplied with."""
        terms = len(self.disentangled.terms) if self.position == "disentangled" else 0
        return self.attention_scale or (self.head_dim * (1 + terms)) ** -0.5

    @property
    def rotary_dim(self) -> int:
        """Return how many numbers of a head are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    def flops_per_token(self, seq_len: int) -> int:
        """Count matmul FLOPs of a training step (forward and backward) per token.

        6 for each weight that multiplies a token (the head included, the tables not), and
        12 * heads * head_dim for each layer and key. Attention is counted over the full square,
        window included but NOT halved for causality, as in PaLM's appendix B (arXiv 2204.02311), so
        that utilisations compare with published ones. Norms and softmax are not counted.

        Examples:
          >>> config = ModelConfig()
          >>> config.flops_per_token(1024) / (6 * config.num_params)
          1.144...
        """
        keys = sum(min(window or seq_len, seq_len) for window in self.windows)
        keys *= self.num_layers // len(self.windows)
        return super().flops_per_token(seq_len) + 12 * self.num_heads * self.head_dim * keys


def check_decodes(config: LanguageModel) -> None:
    """Check that a model predicts a token from those before it.

    Raises:
      UserError: it is an encoder, or predicts labels.
    """
    if config.why_not_decode is not None:
        raise UserError(
            f"the model {config.why_not_decode}; it cannot predict or decode tokens one by one: take a "
            "decoder, or let it label texts (jaxllm train_labels) or embed them (models.trunk)"
        )


def check_length(config: LanguageModel, tokens: int) -> None:
    """Check that a text of so many tokens has a position for each.

    Raises:
      UserError: it is longer than a learned table.
    """
    if config.most_positions is not None and tokens > config.most_positions:
        raise UserError(f"{tokens} tokens do not fit context_length={config.context_length}")


def check_transformer(config: LanguageModel, what: str) -> None:
    """Refuse a model that is no transformer, for a technique that knows only those.

    Args:
      what: the technique, for the message: "subnetwork", "engine=tiles".

    Raises:
      UserError: the model has another architecture.
    """
    if not isinstance(config, ModelConfig):
        raise UserError(
            f"{what} is of transformers, and the model's architecture is {config.architecture}; leave it "
            "out, or choose a transformer"
        )


@functools.lru_cache(maxsize=256)
def _layer_weights(config: LanguageModel) -> int:
    return sum(one.size for one in leaves(declare(config)["layers"]) if one.inputs) // config.num_layers
