"""What checkpoints store beside their weights: numbers that the model computes itself, if they are those."""

import re

import numpy as np

from jaxllm.models import rotary
from jaxllm.models.config import ModelConfig

_LAYER = re.compile(r"(?:^|\.)(?:h|layers)\.(\d+)\.")


def causal_mask(config: ModelConfig, name: str, found: np.ndarray) -> tuple[bool, str]:
    """Check for the mask of the layer that the name says, its window included."""
    layer = _LAYER.search(name)
    window = config.windows[int(layer.group(1)) % len(config.windows)] if layer else 0
    size = found.shape[-1] if found.ndim else 0
    mask = np.tril(np.ones((size, size), bool))
    mask &= ~np.tril(mask, -window) if window else True
    good = found.size == mask.size and np.array_equal(found.reshape(mask.shape), mask)
    return good, f"a causal mask with window={window}" if window else "a causal mask"


def position_ids(config: ModelConfig, name: str, found: np.ndarray) -> tuple[bool, str]:
    """Check for the numbers of positions."""
    return bool(np.array_equal(found.ravel(), np.arange(found.size))), "the numbers of positions from 0"


def of_another_head(config: ModelConfig, name: str, found: np.ndarray) -> tuple[bool, str]:
    """Take a tensor of a head that the config does not ask for: hidden states do not depend on it."""
    return True, "anything"


def mask_fill(config: ModelConfig, name: str, found: np.ndarray) -> tuple[bool, str]:
    """Check for a number that hides a score."""
    return found.size == 1 and found.max() <= -1e4, "one number of -10000 or below"


def rotary_frequencies(config: ModelConfig, name: str, found: np.ndarray) -> tuple[bool, str]:
    """Check for the frequencies of the model's rotary positions."""
    expected = rotary.rotary_frequencies(config.rotary_dim, config.rope_theta, config.rope_scaling)
    # Rounded to 16 bits they differ by half a percent; a scaled rotation by far more.
    good = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-2, atol=0)
    kind = config.rope_scaling.kind
    scaled = "unscaled" if kind == "none" else f"with scaling by '{kind}'"
    return good, f"the rotary frequencies of rope_theta={config.rope_theta}, {scaled}"
