"""One module a paper, `python -m experiments.NAME`; benchmarks in `experiments.benchmarks`."""

from jaxllm.quiet_start import quiet_start

quiet_start()
