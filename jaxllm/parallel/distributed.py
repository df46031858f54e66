"""Join the processes of a multi-host run."""

import os

import jax

from jaxllm.errors import UserError


def initialize() -> None:
    """Connect this process to the others of the run; call before anything touches a device.

    On TPU pods, Slurm and Kubernetes jax finds the others by itself. Elsewhere set three environment
    variables in each process: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID.

    Raises:
      UserError: only some of the variables are set, or one is not a number, or nothing was found.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given and len(given) < len(names):
        missing = [name for name in names if name not in given]
        raise UserError(f"{', '.join(given)} set but not {', '.join(missing)}; set all three or none")
    try:
        if given:
            address, count, index = (given[name] for name in names)
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        raise UserError(
            f"cannot join a multi-process run ({error}); set {', '.join(names)} in each process, "
            "or run without --distributed"
        ) from error
