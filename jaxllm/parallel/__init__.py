"""Where arrays live: device meshes, and the table from logical axes to mesh axes."""

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
