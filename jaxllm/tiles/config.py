"""How a run is cut into tiles and scheduled, as values."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxllm.config import Bytes, Config, Range
from jaxllm.tiles.policies import POLICIES

_TileSize = Annotated[int, Range(0, 2**28)]


@dataclass(frozen=True)
class TileSizes(Config):
    """The sizes of tiles along each kind of axis; 0: not cut.

    Raises:
      UserError: a negative size.
    """

    batch: _TileSize = 0  # sequences
    seq: _TileSize = 0  # tokens
    embed: _TileSize = 0
    mlp: _TileSize = 0
    heads: _TileSize = 0
    vocab: _TileSize = 0

    _prefix = "tiles.sizes."


@dataclass(frozen=True)
class TilesConfig(Config):
    """How a run is cut into tile tasks and scheduled.

    Raises:
      UserError: an unknown policy, or negative memory.
    """

    sizes: TileSizes = TileSizes()  # 0: an axis is not cut
    policy: Literal[tuple(POLICIES)] = "dmdas"
    device_bytes: Bytes = 0  # that tiles may use on a device; 0: as much as they need
    flash: bool = False  # compute attention's scores twice rather than keep them
    ordered: bool = False  # sums in one order: the same bits in every schedule

    _prefix = "tiles."
