"""Where arrays live: device meshes, and the table from logical axes to mesh axes."""

from jaxllm.parallel.distributed import ProcessLost as ProcessLost
from jaxllm.parallel.distributed import initialize as initialize
from jaxllm.parallel.distributed import is_process_lost as is_process_lost
from jaxllm.parallel.distributed import leave as leave
from jaxllm.parallel.distributed import losses_told as losses_told
from jaxllm.parallel.memory import HOST_MEMORY as HOST_MEMORY
from jaxllm.parallel.memory import in_host_memory as in_host_memory
from jaxllm.parallel.memory import on_host as on_host
from jaxllm.parallel.memory import to_device as to_device
from jaxllm.parallel.mesh import MeshConfig as MeshConfig
from jaxllm.parallel.mesh import make_mesh as make_mesh
from jaxllm.parallel.rules import RULES as RULES
from jaxllm.parallel.rules import constrain as constrain
from jaxllm.parallel.rules import partition_spec as partition_spec
from jaxllm.parallel.rules import shardings as shardings
from jaxllm.parallel.shards import mesh_axes as mesh_axes
from jaxllm.parallel.shards import on_shards as on_shards
from jaxllm.parallel.shards import spread as spread
from jaxllm.parallel.streaming import streamed as streamed
