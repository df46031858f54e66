"""Eight simulated devices, set before jax starts, and one cache of compiled programs a session."""

import atexit
import ctypes
import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from unittest import mock

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Tests compile much and run little. LLVM's optimisation and XLA's fusion emitters (MLIR) would be two
    # thirds of the suite's time; splitting a module for parallel code generation costs more than it gives.
    + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # XLA ends the process at a flag that it does not know, and newer ones have no other emitters.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith(("0.7.", "0.10.")) else "")
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Workers and child processes inherit the environment, so a program is compiled once a session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="jaxllm-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Each operation's lines of Python would be written into every program; no test reads them.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")


def pytest_collection_finish(session):
    """Leave what the imports made out of every later search for garbage, and search less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _trace_for_this_cpu(request):
    """Trace no implementation for a TPU or a GPU where a module runs on this CPU alone: a third of tracing.

    A module that lowers for another platform without a mark says `EVERY_PLATFORM = True`.
    """
    here = [item for item in request.session.items if item.path == request.path]
    others = any(item.get_closest_marker(mark) for item in here for mark in ("targets", "gpu"))
    others |= bool({"kernels", "targets"} & set(request.path.relative_to(request.config.rootpath).parts))
    if others or os.environ["JAX_PLATFORMS"] != "cpu" or hasattr(request.module, "EVERY_PLATFORM"):
        yield
        return
    from jaxllm_kernels import dispatch

    with mock.patch.dict(dispatch._WRITTEN_FOR, clear=True):
        yield


@pytest.fixture(scope="module", autouse=True)
def _free_programs():
    """Drop a module's compiled programs after its last test: kept, they fill a worker's memory."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # training tells the allocator to keep what it is given back
