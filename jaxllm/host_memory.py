"""Let a CPU step reuse the memory of the one before it."""

import ctypes
import functools
import os
import sys
from pathlib import Path

import jax

_GIB = 2**30
_HUGE_PAGE = 2 * 2**20
_MADV_HUGEPAGE = 14
# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the C allocator to keep what is freed; return whether it does.

    XLA's CPU backend allocates a step's temporaries as one block, which glibc takes from the system
    and gives back each time: every page of it is then faulted in and zeroed anew. Nothing happens
    where there is an accelerator, where the CPU simulates several devices, or with another C
    library. The process keeps the memory of its largest moment until it ends. Call it before jax
    starts its backends.
    """
    if not sys.platform.startswith("linux") or not _one_cpu_device():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    for parameter, value in (
        (_MMAP_THRESHOLD, _LARGEST),
        (_TRIM_THRESHOLD, _LARGEST),
        (_TOP_PAD, 2**26),
    ):
        if not libc.mallopt(ctypes.c_int(parameter), ctypes.c_int(value)):
            return False
    _ask_for_huge_pages(libc)
    # Steps then run, and allocate, in the thread that calls them. Other threads' arenas are made of
    # heaps of 64 MiB, and larger blocks would still come from the system and go back to it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True


def _one_cpu_device() -> bool:
    """Guess from the settings, or else the devices in sight, without starting jax."""
    # Several devices wait for each other, which they cannot all do in one calling thread.
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return False
    if jax.config.jax_num_cpu_devices > 1:
        return False
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    accelerators = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd")
    return not any(any(Path("/dev").glob(pattern)) for pattern in accelerators)


def _ask_for_huge_pages(libc) -> None:
    """Grow the heap's address space by a GiB that the system may back with huge pages."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(_GIB)
    if block:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, _GIB - _HUGE_PAGE, _MADV_HUGEPAGE)  # untouched, so no memory yet
        libc.free(block)
