"""Several processes of one training command on this machine, joined by jax.distributed."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence


def start(commands: Sequence[Sequence[str]], devices: int) -> list[subprocess.Popen]:
    """Start `jaxllm train` in several processes; their output is piped, as text.

    Args:
      commands: for each process what its command is given.
      devices: simulated CPU devices of each.
    """
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jaxllm.cli", "train", "--distributed", *command],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command, env in zip(commands, environment(len(commands), devices), strict=True)
    ]  # fmt: skip


def environment(processes: int, devices: int) -> list[dict[str, str]]:
    """Return the environment of each of several processes that `parallel.initialize` joins."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    given = re.sub(r"\S+device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    shared = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        # They compile in a third of the time, and nobody times their steps.
        "XLA_FLAGS": f"{given} --xla_backend_optimization_level=0 "
        f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    return [shared | {"JAX_PROCESS_ID": str(index)} for index in range(processes)]
