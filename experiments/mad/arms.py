"""The models that MAD's study compares: parts, hand-made mixtures of their blocks, parts made wider."""

import dataclasses
from dataclasses import dataclass

from experiments.shared.equal_size import widened
from jaxllm.config import Config, Count
from jaxllm.errors import unknown
from jaxllm.models import MAMBAFORMER, LanguageModel, MambaConfig, ModelConfig, StripedConfig

PARTS = ("attention", "mamba")
HAND_MADE = ("mambaformer", "striped")
STRIPED = ("mamba", "mlp", "attention", "mlp")  # mad-lab's striped model has Hyena where this has Mamba
_WIDEST = 16  # times the width


@dataclass(frozen=True)
class Sizes(Config):
    """Sizes of the parts: half the width of the independent re-implementation's."""

    embed_dim: Count = 32
    num_heads: Count = 4
    attention_layers: Count = 2
    mamba_layers: Count = 2
    state_dim: Count = 8


def part(name: str, sizes: Sizes, vocab_size: int, length: int) -> LanguageModel:
    """Return a part, or a hand-made model, for sequences of so many tokens."""
    width = sizes.embed_dim  # at GPT-2's 0.02 small models stand still for longer
    shared = dict(vocab_size=vocab_size, context_length=length, embed_dim=width, init_std=width**-0.5)
    heads, state = dict(num_heads=sizes.num_heads), dict(state_dim=sizes.state_dim)
    match name:
        case "attention":
            return ModelConfig(**shared, **heads, num_layers=sizes.attention_layers)
        case "mamba":
            return MambaConfig(**shared, **state, num_layers=sizes.mamba_layers)
        case "mambaformer":
            return StripedConfig(**shared, **heads, **state, pattern=MAMBAFORMER, num_layers=1)
        case "striped":
            return StripedConfig(**shared, **heads, **state, pattern=STRIPED, num_layers=1)
    raise unknown("part", name, (*PARTS, *HAND_MADE))


def wide_part(
    name: str, sizes: Sizes, vocab_size: int, length: int, like: LanguageModel, what: str
) -> LanguageModel:
    """Return a part, widened until its parameters, or its FLOPs, are as many as another model's.

    Widths are multiples of the number of heads.
    """

    def make(width):
        return part(name, dataclasses.replace(sizes, embed_dim=width), vocab_size, length)

    widths = range(sizes.num_heads, _WIDEST * sizes.embed_dim + 1, sizes.num_heads)
    return widened(make, widths, like, what, length)
