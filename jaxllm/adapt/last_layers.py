"""Train the last layers of a model alone: gradients stop where they begin."""

from dataclasses import dataclass

import jax

from jaxllm.errors import UserError
from jaxllm.models import LanguageModel, is_apart, layers_apart


@dataclass(frozen=True)
class LastLayers:
    """A view (trained, frozen, key) -> parameters: the last `count` layers are trained, all else is frozen.

    Raises:
      UserError: fewer than one layer, or more than the model has.

    Examples:
      >>> from jaxllm import models
      >>> model = models.get_preset("gpt2-nano")
      >>> view = LastLayers(model, 1)
      >>> trained, frozen = view.begin(models.init(model, jax.random.key(0)))
      >>> len(trained["layers"]), len(view(trained, frozen, None)["layers"])
      (1, 2)
    """

    model: LanguageModel
    count: int

    def __post_init__(self):
        if not 1 <= self.count <= self.model.num_layers:
            raise UserError(
                f"last_layers is {self.count}; it must be from 1 to the {self.model.num_layers} of the model"
            )

    def begin(self, base: dict) -> tuple[dict, dict]:
        """Return (what is trained, the whole model with its layers taken apart)."""
        frozen = base if is_apart(base) else layers_apart(base)
        return {"layers": tuple(frozen["layers"][-self.count :])}, frozen

    def __call__(self, trained: dict, frozen: dict, key: jax.Array | None) -> dict:
        """Return the model's parameters, layers apart."""
        del key
        return frozen | {"layers": (*frozen["layers"][: -self.count], *trained["layers"])}
