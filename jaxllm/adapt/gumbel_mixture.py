"""DASH's search of mixtures (Shen et al., arXiv 2204.07554): noise on their logits in training, as a view."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.axis_names import is_names
from jaxllm.config import Config, Positive


@dataclass(frozen=True)
class _Checked(Config):
    temperature: Positive = 1.0


class GumbelMixture:
    """Draw each mixture's weights from a soft Gumbel-softmax: softmax((logits + Gumbel noise) / temperature).

    A view `(params, frozen, key) -> params`: without a key, in an evaluation, parameters pass as they are.

    Args:
      axes: logical axis names, structured like the parameters; mixtures are those with an axis "mixture".
      temperature: the lower, the nearer to one-hot.

    Examples:
      >>> view = GumbelMixture({"logits": ("blocks", "mixture"), "w": ("embed",)})
      >>> params = {"logits": jnp.zeros((1, 2)), "w": jnp.ones(2)}
      >>> drawn = view(params, None, jax.random.key(0))
      >>> bool(drawn["logits"][0, 0] != 0), drawn["w"] is params["w"]
      (True, True)
    """

    def __init__(self, axes: Any, temperature: float = 1.0):
        self.axes, self.temperature = axes, _Checked(temperature).temperature

    def __call__(self, params: Any, frozen: Any, key: jax.Array | None) -> Any:
        """Return the parameters of one step."""
        del frozen
        if key is None:
            return params

        def drawn(number, names, w):
            if "mixture" not in names:
                return w
            noise = jax.random.gumbel(jax.random.fold_in(key, number), w.shape, jnp.float32).astype(w.dtype)
            return (w + noise) / jnp.asarray(self.temperature, w.dtype)

        names, tree = jax.tree.flatten(self.axes, is_leaf=is_names)
        return tree.unflatten(map(drawn, range(len(names)), names, tree.flatten_up_to(params)))
