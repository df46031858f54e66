"""What the allocator does with memory that a step frees."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxllm import host_memory

SCRIPT = """
import ctypes, resource, sys

kept = False
if sys.argv[1] == "keep":
    from jaxllm.host_memory import keep_freed_memory
    kept = keep_freed_memory()
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


def measured(mode):
    """Return (kept, page faults of ten blocks) of a new process, whose allocator nobody has set."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", SCRIPT, mode]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_memory_freed_by_one_step_is_not_faulted_in_by_the_next():
    kept, faults = measured("keep")
    _, usual = measured("leave")
    assert kept
    assert usual >= 10 * 2**26 // 2**21  # at least a fault for each huge page
    assert faults < usual / 10


@pytest.mark.parametrize(
    "flags, devices, platforms, kept",
    [
        ("", 1, "cpu", True),
        ("--xla_force_host_platform_device_count=2", 1, "cpu", False),
        ("", 2, "cpu", False),
        ("", 1, "cuda,cpu", False),
    ],
)
def test_devices_that_wait_for_each_other_keep_the_usual_allocator(
    flags, devices, platforms, kept, monkeypatch
):
    asked = []
    config = SimpleNamespace(jax_num_cpu_devices=devices, jax_platforms=platforms)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(host_memory, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(host_memory, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(host_memory, "ctypes", SimpleNamespace(CDLL=asked.append))
    assert not host_memory.keep_freed_memory.__wrapped__()  # what stands for the allocator is not glibc
    assert bool(asked) == kept
