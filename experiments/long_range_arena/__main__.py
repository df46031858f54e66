"""The command `python -m experiments.long_range_arena`."""

from experiments.long_range_arena import PRESETS, LongRangeConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, LongRangeConfig, PRESETS)
