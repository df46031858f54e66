"""The models that MAD's study compares: parts, hand-made mixtures of their blocks, parts made wider."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from jaxllm.config import Config, Count
from jaxllm.errors import unknown
from jaxllm.models import MAMBAFORMER, LanguageModel, MambaConfig, ModelConfig, StripedConfig
from jaxllm.synthetic import MadTask

PARTS = ("attention", "mamba")
HAND_MADE = ("mambaformer", "striped")
STRIPED = ("mamba", "mlp", "attention", "mlp")  # mad-lab's striped model has Hyena where this has Mamba
EQUAL = ("parameters", "FLOPs")
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


def widened(
    name: str, sizes: Sizes, task: MadTask, wanted: float, count: Callable[[LanguageModel], float]
) -> LanguageModel:
    """Return a part of the width whose count (of parameters, of FLOPs) comes nearest to what is wanted.

    Widths are multiples of the number of heads.

    Examples:
      >>> task = MadTask("in_context_recall", length=32)
      >>> wide = widened("mamba", Sizes(), task, 200_000, lambda model: model.num_params)
      >>> wide.embed_dim, wide.num_params
      (120, 197640)
    """

    def of(width):
        return part(name, dataclasses.replace(sizes, embed_dim=width), task.vocab_size, task.length)

    widths = range(sizes.num_heads, _WIDEST * sizes.embed_dim + 1, sizes.num_heads)
    return of(min(widths, key=lambda width: abs(count(of(width)) - wanted)))
