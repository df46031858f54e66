"""How fast a run goes, and how long it took to begin."""

import os
import time
from collections import deque

_IMPORTED = time.time()


class Stopwatch:
    """How much work is done a second, over the steps alone: pause it for evaluation and saving.

    Args:
      work: what a step does, in tokens or whatever is counted.
      recent: how many steps `speed` looks back.
    """

    def __init__(self, work: int, recent: int = 50):
        self._work = work
        self._recent = deque(maxlen=recent)  # seconds a step
        self._seconds = 0.0
        self._steps = 0
        self._last = None

    def lap(self) -> None:
        """Note that a step has finished."""
        now = time.perf_counter()
        if self._last is not None:
            self._recent.append(now - self._last)
            self._seconds += now - self._last
            self._steps += 1
        self._last = now

    def pause(self) -> None:
        """Leave out the time until the next lap."""
        self._last = None

    @property
    def speed(self) -> float:
        """Over the last few steps; 0 before there are two."""
        return len(self._recent) * self._work / sum(self._recent) if self._recent else 0.0

    @property
    def overall_speed(self) -> float:
        """Over all steps but the first; 0 before there are two."""
        return self._steps * self._work / self._seconds if self._steps else 0.0


def seconds_since_process_start() -> float:
    """Return how long this process has lived, interpreter and imports included."""
    try:  # Linux: field 22 of /proc/self/stat, in clock ticks since boot
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.time() - _IMPORTED
