"""A jax.profiler trace of a few steps."""

from pathlib import Path

import jax

WARMUP_STEPS = 3  # compile and settle before the trace begins


class Profiler:
    """Trace `steps` steps of a run into a folder; with 0 do nothing.

    Open the folder with XProf or TensorBoard's profile plugin, or its .trace.json.gz in Perfetto.
    """

    def __init__(self, folder, steps: int):
        self._folder, self._steps, self._seen, self._tracing = Path(folder), steps, 0, False

    def step(self, wait_for) -> None:
        """Note that a step was dispatched; `wait_for` is an array it computes."""
        if not self._steps:
            return
        self._seen += 1
        if self._seen == WARMUP_STEPS:
            wait_for.block_until_ready()
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and self._seen == WARMUP_STEPS + self._steps:
            wait_for.block_until_ready()
            self._stop()

    def _stop(self):
        jax.profiler.stop_trace()
        self._tracing = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._tracing:
            self._stop()
