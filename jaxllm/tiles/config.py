"""How a run is cut into tiles and scheduled, as values."""

import dataclasses
from dataclasses import dataclass

from jaxllm.errors import UserError
from jaxllm.tiles.policies import get_policy


@dataclass(frozen=True)
class TileSizes:
    """The sizes of tiles along each kind of axis; 0: not cut.

    Raises:
      UserError: a negative size.
    """

    batch: int = 0  # sequences
    seq: int = 0  # tokens
    embed: int = 0
    mlp: int = 0
    heads: int = 0
    vocab: int = 0

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            if size < 0:
                raise UserError(
                    f"tile size {name}={size} cannot cover anything; give a positive size, or 0 for "
                    "a whole axis"
                )


@dataclass(frozen=True)
class TilesConfig:
    """How a run is cut into tile tasks and scheduled.

    Raises:
      UserError: an unknown policy, or memory that is not positive.
    """

    sizes: TileSizes = TileSizes()  # 0: an axis is not cut
    policy: str = "dmdas"  # one of tiles.POLICIES
    device_bytes: int = 0  # that tiles may use on a device; 0: as much as they need
    flash: bool = False  # compute attention's scores twice rather than keep them
    ordered: bool = False  # sums in one order: the same bits in every schedule

    def __post_init__(self):
        get_policy(self.policy)
        if self.device_bytes < 0:
            raise UserError(f"tiles.device_bytes is {self.device_bytes}; give the bytes of a device, or 0")
