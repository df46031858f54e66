"""The devices of a machine that is not here, as its vendor's compiler describes them."""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator

import jax
from jax._src import compilation_cache, xla_bridge

from jaxllm.errors import UserError
from jaxllm.quiet_start import held_stderr
from jaxllm.targets.catalog import Target, get_target
from jaxllm.targets.gpu_configs import gpu_target_config

# Read when libtpu is loaded. Without them it asks a metadata server that is not there what machine
# this is, lets one process at a time load it, and writes logs to the screen and to a shared folder.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}
_LOADING = threading.Lock()
_ONE_CHIP = {"chips_per_host_bounds": [1, 1, 1]}  # a host has four, unless told otherwise
# What jax calls the client of such a machine. It can write a program to the cache on disk but not read it.
_COMPILE_ONLY = "compile_only_runtime"
_CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


def devices(target: Target | str) -> list[jax.Device]:
    """Return the devices of a target, to lower and compile for.

    Nothing can be placed or run on them, except on those of `cpu`, which are this process's own. The
    process's default backend stays what it is, and several processes may compile at once. What is compiled
    for a machine that is not here stays out of jax's compilation cache on disk.

    Raises:
      UserError: the compiler of the target is not installed, or this process has too few CPU devices.
    """
    target = get_target(target)
    if target.platform == "cpu":
        return _cpu_devices(target)
    if not is_available(target):
        vendor, extra = ("a TPU needs Google's compiler, libtpu", "tpu-targets")
        if target.platform == "cuda":
            vendor, extra = ("an NVIDIA GPU needs jax's CUDA plugin", "cuda-targets")
        raise UserError(
            f"target '{target.name}': compiling for {vendor}, which is not installed; "
            f"pip install 'jaxllm[{extra}]'"
        )
    # A second call gives the same objects, so that jax finds what it compiled for the first.
    return list(_compile_only_devices(target.platform, target.chip, target.topology))


def compiler_options(target: Target | str) -> dict[str, bool | int | str]:
    """Return what `Lowered.compile(compiler_options=...)` needs where the device is not here.

    XLA's GPU compiler times candidate kernels on the device to choose one; this tells it not to, and to
    leave plain matrix products to cuBLAS, which is what a tuned run mostly chooses. Code is optimised as
    there, whatever this process's XLA_FLAGS say.
    """
    if get_target(target).platform != "cuda":
        return {}
    return {
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": False,
        "xla_backend_optimization_level": 3,
    }


def is_available(target: Target | str) -> bool:
    """Return whether the compiler of this target is installed."""
    platform = get_target(target).platform
    if platform == "tpu":
        return bool(os.environ.get("TPU_LIBRARY_PATH")) or _installed("libtpu")
    return platform == "cpu" or any(_installed(name) for name in _CUDA_PLUGINS)


def _cpu_devices(target: Target) -> list[jax.Device]:
    _start_default_backend()
    here = jax.devices("cpu")
    if len(here) < target.num_devices:
        raise UserError(
            f"target '{target.name}' needs {target.num_devices} CPU devices and this process has "
            f"{len(here)}; before Python starts set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={target.num_devices}"
        )
    return here[: target.num_devices]


def _compile_only_devices(platform: str, chip: str, topology: str) -> tuple[jax.Device, ...]:
    with _LOADING:  # a compiler is loaded once, whichever thread asks first
        _keep_out_of_the_cache()
        return _described(platform, chip, topology)


@functools.cache
def _described(platform: str, chip: str, topology: str) -> tuple[jax.Device, ...]:
    from jax.experimental import topologies

    if platform == "tpu":
        _load_libtpu()
        # A v4 chip is two devices unless asked for as one, which is how Google's machines use it.
        more = {"chip_config_name": "megacore"} if chip == "v4" else {}
        if set(topology.partition(":")[2].split("x")) == {"1"}:
            more |= _ONE_CHIP
        try:
            found = topologies.get_topology_desc(topology, "tpu", **more)
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"the installed libtpu does not know the TPU slice '{topology}' ({_first_line(error)}); "
                "upgrade libtpu, or choose another target"
            ) from error
        return tuple(found.devices)
    _load_cuda_plugin()
    target = get_target(chip)
    for plain in (False, True):
        text = gpu_target_config(chip, target.gpu_memory, target.hbm_bandwidth, plain=plain)
        try:
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=topology, topology=topology, target_config=text
            )
            break
        except jax.errors.JaxRuntimeError as error:
            if plain:
                raise UserError(
                    "the installed CUDA plugin cannot describe a GPU that is not here "
                    f"({_first_line(error)}); install the plugin that matches jaxlib: "
                    "pip install 'jaxllm[cuda-targets]'"
                ) from error
    return tuple(found.devices)


def _keep_out_of_the_cache() -> None:
    """Tell jax to leave out of its cache on disk what it compiles for a machine that is not here.

    By the client, so that this process's own programs are cached as before, in whichever thread.
    """
    compilation_cache._UNSUPPORTED_RUNTIMES.add(_COMPILE_ONLY)
    logging.getLogger(compilation_cache.__name__).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return _COMPILE_ONLY not in record.getMessage()  # jax warns at each program that it leaves out


def _load_libtpu() -> None:
    """Load libtpu without taking a TPU, unless it is loaded already."""
    from jax._src.lib import xla_client

    if xla_client.pjrt_plugin_loaded("tpu") and xla_client.pjrt_plugin_initialized("tpu"):
        return
    _start_default_backend()
    with _environment(_LIBTPU), held_stderr():
        xla_bridge.make_pjrt_tpu_topology("v5e:2x2")


def _load_cuda_plugin() -> None:
    """Load XLA's GPU compiler, unless it is loaded already."""
    _start_default_backend()
    if "cuda" in xla_bridge._topology_factories:
        return
    name = next(name for name in _CUDA_PLUGINS if _installed(name))
    # The check that is skipped wants a driver and the CUDA libraries, which only running needs.
    with _environment({"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}), held_stderr():
        importlib.import_module(name).initialize()


def _start_default_backend() -> None:
    """Let jax choose its devices first, so that a compiler loaded later cannot become one of them."""
    if xla_bridge.backends_are_initialized():
        return
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it tells of a CUDA plugin without a driver, with a traceback
    try:
        with held_stderr():
            jax.devices()
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that are not set already, for the length of a block."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package it is in
        return False


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].strip()
