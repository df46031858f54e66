"""What the allocator does with memory that a step frees."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from jaxllm.host_memory import keep_freed_memory

kept = sys.argv[1] == "keep" and keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = libc.malloc(2**26)
        ctypes.memset(block, 1, 2**26)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""


def measured(mode, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-c", SCRIPT, mode]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_memory_freed_by_one_step_is_not_faulted_in_by_the_next():
    kept, faults = measured("keep", JAX_PLATFORMS="cpu")
    _, usual = measured("leave", JAX_PLATFORMS="cpu")
    assert kept
    assert usual >= 10 * 2**26 // 2**21  # at least a fault for each huge page
    assert faults < usual / 10


def test_devices_that_wait_for_each_other_keep_the_usual_allocator():
    kept, _ = measured("keep", JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert not kept
    assert not measured("keep", JAX_PLATFORMS="cuda,cpu")[0]
