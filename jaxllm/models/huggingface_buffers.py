"""What checkpoints store beside their weights: numbers that the model computes itself, if they are those."""

import re

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig

_LAYER = re.compile(r"(?:^|\.)(?:h|layers)\.(\d+)\.")
_MASK, _FILL, _FREQUENCIES = (".attn.bias", ".attention.bias"), ".masked_bias", "rotary_emb.inv_freq"


def is_buffer(name: str) -> bool:
    """Say whether a tensor's name is that of a causal mask, of what fills it, or of rotary frequencies."""
    return name.endswith((*_MASK, _FILL, _FREQUENCIES))


def check_buffer(config: ModelConfig, name: str, array: np.ndarray) -> None:
    """Raise where a buffer holds anything but what the model computes in its place.

    Raises:
      UserError: a mask that is not the layer's, a fill that hides nothing, other frequencies.
    """
    found = np.asarray(array, np.float32)
    if name.endswith(_FREQUENCIES):
        expected = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        # Rounded to 16 bits they differ by half a percent; a scaled rotation by far more.
        good = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-2, atol=0)
        meant = f"the rotary frequencies of rope_theta={config.rope_theta}, unscaled"
    elif name.endswith(_FILL):
        good, meant = found.size == 1 and found.max() <= -1e4, "one number of -10000 or below"
    else:
        layer = _LAYER.search(name)
        window = config.windows[int(layer.group(1)) % len(config.windows)] if layer else 0
        size = found.shape[-1] if found.ndim else 0
        mask = np.tril(np.ones((size, size), bool))
        mask &= ~np.tril(mask, -window) if window else True
        good = found.size == mask.size and np.array_equal(found.reshape(mask.shape), mask)
        meant = f"a causal mask with window={window}" if window else "a causal mask"
    if not good:
        raise UserError(
            f"the tensor '{name}' is a buffer that should hold {meant}, which the model computes itself, but "
            "holds something else; the model it belongs to is not supported"
        )
