"""Which numbers share a grid, and how many bits it has."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxllm.config import Config, Range

Sharing = Literal["tensor", "channel"]


@dataclass(frozen=True)
class Scheme(Config):
    """How the linear layers of a model are quantised; every layer has grids of its own."""

    bits: Annotated[int, Range(2, 16)]
    method: Literal["absmax", "zeropoint"]  # of the weights; activations always take absmax
    weights: Sharing  # "channel": a grid for each output channel
    activations: Sharing | None  # "channel": a grid for each input channel; None: left alone


SCHEMES = {
    "absmax8_coarse": Scheme(8, "absmax", weights="tensor", activations="tensor"),
    "absmax8_moderate": Scheme(8, "absmax", weights="channel", activations="tensor"),
    "absmax8_fine": Scheme(8, "absmax", weights="channel", activations="channel"),
    "zeropoint4": Scheme(4, "zeropoint", weights="channel", activations=None),
    "zeropoint4_tensor": Scheme(4, "zeropoint", weights="tensor", activations=None),
}
