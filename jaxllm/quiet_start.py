"""Start jax without what the plugins for GPUs and TPUs print on a machine that has neither.

They are installed there to compile for machines that are elsewhere (`jaxllm plan`). jax loads them all the
same, and they complain in 40 lines and a traceback. Where there is such a device nothing is held back.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from jaxllm.errors import UserError

# NVIDIA's driver on Linux, on Jetson boards, on Windows' subsystem for Linux; TPUs.
_DEVICES = ("nvidia*", "nvhost-ctrl*", "nvmap", "dxg", "accel*", "vfio/[0-9]*")
_SETTINGS = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")


def quiet_start() -> None:
    """Import jax; where no GPU and no TPU is attached, tell it to use the CPU and hold back complaints.

    Chooses no device yet, so that `jax.distributed` may still be initialised. Does nothing where the user set
    a platform, or a plugin for other devices is installed.
    """
    plugins = {plugin.value for plugin in entry_points(group="jax_plugins")}
    others = [plugin for plugin in plugins if not plugin.startswith("jax_plugins.xla_cuda")]
    found = any(next(Path("/dev").glob(device), None) for device in _DEVICES)
    if found or others or sys.platform != "linux" or any(os.environ.get(name) for name in _SETTINGS):
        return
    with held_stderr():
        import jax
        from jax._src import hardware_utils, xla_bridge

        if hardware_utils.num_available_tpu_chips_and_device_id()[0] == 0:
            jax.config.update("jax_platforms", "cpu")
            xla_bridge._discover_and_register_pjrt_plugins()  # native code that speaks when it is loaded


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Hold back what native code prints to stderr; show it if the block raises, but for a UserError."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (AttributeError, OSError):  # stderr is closed: there is nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except UserError:  # which says it
            raise
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
