"""Device meshes with the axes data, fsdp and tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
from jax.sharding import AxisType, Mesh

from jaxllm.config import Config, Range
from jaxllm.errors import UserError

_Ways = Annotated[int, Range(1, or_value=-1)]


@dataclass(frozen=True)
class MeshConfig(Config):
    """How many ways each mesh axis splits the devices; their product is the number of devices."""

    data: _Ways = -1  # replicas of the parameters, each with its part of the batch; -1: what is left
    fsdp: _Ways = 1  # shards of parameters and optimizer state, each with its part of the batch
    tensor: _Ways = 1  # shards of heads, mlp and vocabulary, and between a layer's blocks of the tokens

    _prefix = "mesh."


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh over all devices.

    Raises:
      UserError: the axis sizes do not multiply to the number of devices.

    Examples:
      >>> make_mesh(MeshConfig(tensor=1)).axis_names
      ('data', 'fsdp', 'tensor')
    """
    count = len(devices) if devices is not None else jax.device_count()
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"mesh {shown}: at most one size may be -1")
    if free:
        fixed = 1
        for size in sizes.values():
            fixed *= max(size, 1)
        sizes[free[0]] = count // fixed
    product = sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    if product != count:
        raise UserError(
            f"mesh {shown} does not cover {count} device{'s' * (count > 1)}; "
            f"choose sizes whose product is {count}"
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices
    )
