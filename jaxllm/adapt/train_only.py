"""Train some of a model's parameters, by name, and leave the others as they are."""

from dataclasses import dataclass

import jax

from jaxllm.adapt.names import choose_params, flat, nested
from jaxllm.models import LanguageModel, axes, init


@dataclass(frozen=True)
class TrainOnly:
    """A view (trained, the others, key) -> parameters.

    Raises:
      UserError: a name that the model does not have.

    Examples:
      >>> from jaxllm import models
      >>> only = TrainOnly(models.get_preset("llama-nano"), "final_norm,mlp_out")
      >>> only.axes()
      {'final_norm': {'scale': ('embed',)}, 'layers': {'mlp': {'out': ('layers', 'mlp', 'embed')}}}
    """

    model: LanguageModel
    names: str  # with commas; see `adapt.names.choose_params`

    def __post_init__(self):
        choose_params(self.model, self.names)

    def split(self, tree: dict) -> tuple[dict, dict]:
        """Return (what is trained, the others) of a tree structured like the model's parameters."""
        chosen, leaves = choose_params(self.model, self.names), flat(tree)
        trained, others = (
            {path: leaves[path] for path in sorted(leaves) if (path in chosen) == wanted}
            for wanted in (True, False)
        )
        return nested(trained), nested(others)

    def begin(self, base: dict, key: jax.Array) -> tuple[dict, dict]:
        """Return (what is trained, what is frozen) of a model before the first step."""
        del key
        return self.split(base)

    def axes(self) -> dict:
        """Return the logical names of the axes of what is trained."""
        return self.split(axes(self.model))[0]

    def frozen_axes(self) -> dict:
        """Return the logical names of the axes of the others."""
        return self.split(axes(self.model))[1]

    def init(self, key: jax.Array) -> dict:
        """Draw what is trained, as `models.init` does."""
        return self.split(init(self.model, key))[0]

    def __call__(self, trained: dict, others: dict, key: jax.Array | None) -> dict:
        """View both as one tree."""
        del key
        return self.merge(trained, others)

    def merge(self, trained: dict, others: dict) -> dict:
        """Return the model's parameters."""
        return nested(flat(others) | flat(trained))
