"""Parameters that are all random, so that biases, gains and sinks count in a comparison."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models


def random_params(config: models.ModelConfig, scale: float = 0.1) -> dict:
    """Return parameters N(0, scale), gains N(1, scale)."""
    random = np.random.default_rng(0)

    def draw(path, shape):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + scale * random.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, models.shapes(config))
