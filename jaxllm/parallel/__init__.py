"""Where arrays live: device meshes, and the table from logical axes to mesh axes.

Start with `make_mesh(MeshConfig(fsdp=8))` and `shardings(axes, shapes, mesh)`: a NamedSharding for every
array of a tree whose axes are named (`models.axes`, by `RULES`).

    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    params = jax.device_put(params, shardings(models.axes(config), params, mesh))

`initialize` joins the processes of several hosts; `in_host_memory`, `to_device` and `streamed` keep arrays
in the host's memory; `on_shards` runs a kernel on each device's part.
"""

from jaxllm.parallel.distributed import ProcessLost, initialize, is_process_lost, leave, losses_told
from jaxllm.parallel.memory import HOST_MEMORY, in_host_memory, on_host, to_device
from jaxllm.parallel.mesh import MeshConfig, make_mesh
from jaxllm.parallel.rules import RULES, constrain, partition_spec, shardings
from jaxllm.parallel.shards import mesh_axes, on_shards, spread
from jaxllm.parallel.streaming import streamed

__all__ = [
    "HOST_MEMORY",
    "RULES",
    "MeshConfig",
    "ProcessLost",
    "constrain",
    "in_host_memory",
    "initialize",
    "is_process_lost",
    "leave",
    "losses_told",
    "make_mesh",
    "mesh_axes",
    "on_host",
    "on_shards",
    "partition_spec",
    "shardings",
    "spread",
    "streamed",
    "to_device",
]
