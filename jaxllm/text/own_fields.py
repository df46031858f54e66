"""Fields of a model that a run decides, whatever model it starts from."""

import dataclasses
from collections.abc import Sequence

from jaxllm.models import LanguageModel

OURS = ("remat", "attention_implementation", "scan_implementation")


def with_own(started: LanguageModel, asked: LanguageModel, names: Sequence[str] = OURS) -> LanguageModel:
    """Return the model that a run starts from with the run's own fields, which `asked` has.

    Examples:
      >>> from jaxllm.models import ModelConfig
      >>> with_own(ModelConfig(num_layers=2), ModelConfig(num_layers=4, remat="full")).num_layers
      2
    """
    both = [name for name in names if hasattr(started, name) and hasattr(asked, name)]
    return dataclasses.replace(started, **{name: getattr(asked, name) for name in both})
