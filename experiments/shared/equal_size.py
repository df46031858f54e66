"""Models made as large as another, or as dear: the control that "a hybrid beats its parts" needs."""

from collections.abc import Callable, Iterable

from jaxllm.models import LanguageModel

EQUAL: dict[str, Callable[[LanguageModel, int], int]] = {  # of a model, in sequences of so many tokens
    "parameters": lambda model, length: model.num_params,
    "FLOPs": lambda model, length: model.flops_per_token(length),
}


def widened(
    make: Callable[[int], LanguageModel], widths: Iterable[int], like: LanguageModel, what: str, length: int
) -> LanguageModel:
    """Return the model of the width whose parameters, or FLOPs, come nearest to another's.

    Examples:
      >>> from jaxllm.models import MambaConfig, ModelConfig
      >>> like = ModelConfig(vocab_size=16, num_layers=2, embed_dim=64, num_heads=4, context_length=32)
      >>> make = lambda width: MambaConfig(vocab_size=16, num_layers=2, embed_dim=width)
      >>> wide = widened(make, range(4, 128, 4), like, "parameters", 32)
      >>> like.num_params, wide.embed_dim, wide.num_params
      (103168, 80, 99120)
    """
    count = EQUAL[what]
    wanted = count(like, length)
    return min(map(make, widths), key=lambda model: abs(count(model, length) - wanted))
