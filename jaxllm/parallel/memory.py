"""The host's memory, as a place for arrays of a program that runs on a device."""

import jax
from jax.sharding import NamedSharding

from jaxllm.errors import UserError

HOST_MEMORY = "pinned_host"  # of a device's memories, the host's pages that it can reach itself


def in_host_memory(sharding: NamedSharding) -> NamedSharding:
    """Return the same sharding of an array that lives in the host's memory.

    Raises:
      UserError: the devices cannot reach the host's memory, or this jax cannot compile for it.
    """
    if isinstance(sharding.mesh, jax.sharding.AbstractMesh):
        return sharding.with_memory_kind(HOST_MEMORY)
    device = sharding.mesh.devices.flat[0]
    if device.platform == "gpu" and not device.addressable_memories():
        return AbsentHostSharding(sharding.mesh, sharding.spec)  # a GPU that is only compiled for
    if device.platform == "cpu" and jax.__version_info__ < (0, 10):
        raise UserError(
            f"jax {jax.__version__} aborts when it compiles host memory for a CPU; leave out the offload, or "
            "upgrade jax to 0.10"
        )
    moved = sharding.with_memory_kind(HOST_MEMORY)
    if moved.memory_kind != HOST_MEMORY:
        raise UserError(f"{device.device_kind} names no host memory to offload to; leave out the offload")
    return moved


def on_host(x) -> bool:
    """Return whether an array, or one that is traced, lives in the host's memory."""
    return isinstance(x, jax.Array) and jax.typeof(x).memory_space == jax.memory.Space.Host


def to_device(x: jax.Array) -> jax.Array:
    """Return an array in the device's memory: itself, if it is there."""
    return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x


def to_host(x: jax.Array) -> jax.Array:
    """Return an array in the host's memory: itself, if it is there."""
    return x if on_host(x) else jax.device_put(x, jax.memory.Space.Host)


class _Kind(str):
    """A kind of memory that a compiler's result, where it tells of none, does not contradict."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return other is None or str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other


class AbsentHostSharding(NamedSharding):
    """A sharding in the host's memory of a GPU that is not here.

    XLA compiles for such memory as for a GPU that is, but jax asks the device for its memories' names and
    drops one that it does not find.
    """

    memory_kind = property(lambda self: _Kind(HOST_MEMORY))

    def __eq__(self, other):
        return type(other) is type(self) and super().__eq__(other)

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return hash((super().__hash__(), HOST_MEMORY))
