"""Parameters that are all random, so that biases, gains and sinks count in a comparison."""

import jax
import numpy as np

from jaxllm import models


def random_params(config: models.ModelConfig, scale: float = 0.1) -> dict:
    """Return parameters N(0, scale), gains N(1, scale)."""
    random = np.random.default_rng(0)

    def draw(path, shape):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + scale * random.normal(size=shape.shape)).astype(shape.dtype)

    # jnp.asarray would compile a program for each shape; what may alias NumPy's memory cannot be donated.
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, models.shapes(config)), may_alias=False)
