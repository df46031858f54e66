"""Join the processes of a multi-host run, and leave it when one of them is lost."""

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

import jax

from jaxllm.errors import UserError

# After so many seconds without a sign of life a process counts as lost. jax's own default is 100.
HEARTBEAT_SECONDS = 30
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start it again

_PATIENCE_SECONDS = 3  # for the others, when this process ends with an error
_HOW_TO_GO_ON = (
    "the last checkpoint is whole: start the run again, on as many processes as are left, and it goes on"
)
# What jax raises when a peer of a collective or the coordinator has gone: the libraries' own words.
_LOST = re.compile(
    r"gloo|nccl|connection (reset|closed|refused)|socket closed|broken pipe|heartbeat|coordination ?service|"
    r"barrier|\bUNAVAILABLE\b|\bDEADLINE_EXCEEDED\b",
    re.IGNORECASE,
)


class ProcessLost(Exception):
    """Another process of the run is gone, so no step can be finished."""

    exit_code = EXIT_CODE


def initialize() -> None:
    """Connect this process to the others of the run; call before anything touches a device.

    On TPU pods, Slurm and Kubernetes jax finds the others by itself. Elsewhere set three environment
    variables in each process: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID.

    From then on a process that dies or hangs ends the others within HEARTBEAT_SECONDS or so, with a
    sentence and the exit code 75: by `ProcessLost`, or from within jax, which aborts.

    Raises:
      UserError: only some of the variables are set, or one is not a number, or nothing was found.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given and len(given) < len(names):
        missing = [name for name in names if name not in given]
        raise UserError(f"{', '.join(given)} set but not {', '.join(missing)}; set all three or none")
    try:
        address, count, index = (given.get(name) for name in names)
        numbers = (int(count), int(index)) if given else (None, None)
        _on_abort(
            "could not join the other processes of the run, for the reason above; check that all were "
            "started, with the same JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES\n"
        )
        jax.distributed.initialize(address, *numbers, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        raise UserError(
            f"cannot join a multi-process run ({error}); set {', '.join(names)} in each process, "
            "or run without --distributed"
        ) from error
    _on_abort(f"another process of the run was lost, or jax failed as said above; {_HOW_TO_GO_ON}\n")


def is_process_lost(error: BaseException) -> bool:
    """Return whether an error says that another process of this run is gone."""
    # jax has no type of its own for it.
    if not isinstance(error, RuntimeError | ValueError) or isinstance(error, UserError):
        return False
    return jax.process_count() > 1 and _LOST.search(str(error)) is not None


@contextlib.contextmanager
def losses_told() -> Iterator[None]:
    """Turn what jax raises when another process is gone into `ProcessLost`.

    Raises:
      ProcessLost: the block failed because another process of the run is gone.
    """
    try:
        yield
    except Exception as error:
        if not is_process_lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ProcessLost(
            f"another process of the run was lost, says process {jax.process_index()} of "
            f"{jax.process_count()} ({reason}); {_HOW_TO_GO_ON}"
        ) from error


def leave(said: str, exit_code: int) -> None:
    """End this process, which has failed, with a last word and without waiting for others that wait for it.

    Python's own exit would: jax's part in it is a barrier of all processes. Where all have failed, as
    they do on the same bad input, they meet there; else the others notice that this one has gone.
    """
    _on_abort("", exit_code)
    sys.stdout.flush()
    sys.stderr.flush()
    # What jax writes from here on, stack traces among it, says less.
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.write(stderr, f"{said}\n".encode())
    # In a thread: it may wait for minutes.
    ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    ending.start()
    ending.join(_PATIENCE_SECONDS)
    os._exit(exit_code)


_handler = None  # the one in force: C holds no reference to it


def _on_abort(sentence: str, exit_code: int = EXIT_CODE) -> None:
    """Make an abort of this process end with a sentence and an exit code.

    When jax's coordinator misses a process it aborts the others, each from a thread of its own and with a
    stack trace. The callback that jaxlib has for that cannot be one of Python's (std::bad_cast), and
    signal.signal would only note the signal, for Python to handle when the process is gone.
    """
    global _handler

    def end(signum):
        os.write(2, sentence.encode())
        os._exit(exit_code)

    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)
