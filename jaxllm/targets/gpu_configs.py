"""What XLA's GPU compiler must know of a GPU that is not here, as its text protocol buffer."""

# Facts of each GPU (streaming multiprocessors, shared memory, caches, clocks): NVIDIA's architecture
# papers and the CUDA programming guide's table of compute capabilities. Keys are the names in catalog.py.
#            capability, cores, fp32 units/core, threads/core, shared/core, shared/block, L2, GHz, links, name
_GPUS = {
    "b200": ((10, 0), 148, 128, 2048, 233_472, 232_448, 132_644_864, 1.965, 18, "NVIDIA B200"),
    "h200": ((9, 0), 132, 128, 2048, 233_472, 232_448, 52_428_800, 1.98, 18, "NVIDIA H200"),
    "h100": ((9, 0), 132, 128, 2048, 233_472, 232_448, 52_428_800, 1.98, 18, "NVIDIA H100 80GB HBM3"),
    "a100-80gb": ((8, 0), 108, 64, 2048, 167_936, 166_912, 41_943_040, 1.41, 12, "NVIDIA A100-SXM4-80GB"),
    "a100-40gb": ((8, 0), 108, 64, 2048, 167_936, 166_912, 41_943_040, 1.41, 12, "NVIDIA A100-SXM4-40GB"),
    "l4": ((8, 9), 58, 128, 1536, 102_400, 101_376, 50_331_648, 2.04, 0, "NVIDIA L4"),
    "t4": ((7, 5), 40, 64, 1024, 65_536, 65_536, 4_194_304, 1.59, 0, "Tesla T4"),
}


def gpu_target_config(chip: str, memory_bytes: int, bandwidth: float, *, plain: bool = False) -> str:
    """Return the GpuTargetConfigProto of a GPU as text.

    Args:
      chip: a GPU's name in the catalog.
      memory_bytes: its memory.
      bandwidth: of its memory, bytes/s.
      plain: leave out the fields that older versions of XLA do not know.
    """
    (major, minor), cores, units, threads, shared, shared_block, l2, clock, links, name = _GPUS[chip]
    capability = f"major: {major}" + (f" minor: {minor}" if minor else "")
    interconnect = ""
    if not plain:
        # From compute capability 9 on the fast matrix instructions belong to the "a" variant (sm_90a).
        capability += f" feature_extension: {'ACCELERATED_FEATURES' if major >= 9 else 'NONE'}"
        interconnect = f"device_interconnect_info {{ active_links: {links} }}" if links else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: {threads}
  core_count: {cores}  fpus_per_core: {units}  clock_rate_ghz: {clock}
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {shared_block}
  shared_memory_per_core: {shared}  l2_cache_size: {l2}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  memory_bandwidth: {int(bandwidth)}  device_memory_size: {memory_bytes}
  cuda_compute_capability {{ {capability} }}
  {interconnect}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
