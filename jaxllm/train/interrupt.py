"""Turn SIGTERM, SIGHUP and Ctrl-C into a request to save and stop."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

_SAID = b"\nstopping after this step, and saving; Ctrl-C once more stops at once\n"


class Interrupted(Exception):
    """A run was asked to stop, and saved a checkpoint first."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum  # the shell's convention: 130 for Ctrl-C, 143 for SIGTERM


class StopRequest:
    """Context in which SIGTERM, SIGHUP and the first Ctrl-C are noted, not obeyed.

    A second Ctrl-C interrupts at once. SIGHUP that is ignored (nohup) stays so. With several processes all
    must stop at the same step, which jax's preemption service agrees on; it handles SIGTERM by itself, and
    is passed SIGHUP as one.
    """

    def __init__(self):
        self.signum: int | None = None
        self._previous = {}

    def _note(self, signum, frame):
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:  # not by print, which a handler may have interrupted
            os.write(2, _SAID)
        self.signum = signum

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        alone = jax.process_count() == 1
        handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._note} if alone else {}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handlers[signal.SIGHUP] = self._note if alone else _as_sigterm
        for signum, handler in handlers.items():
            self._previous[signum] = signal.signal(signum, handler)
        return self

    def __exit__(self, *_):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def received(self, step: int) -> bool:
        """Return whether to stop after this step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signum = signal.SIGTERM
        return self.signum is not None


def _as_sigterm(signum, frame):
    os.kill(os.getpid(), signal.SIGTERM)
