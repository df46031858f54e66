"""The command `python -m experiments.tart`."""

from experiments.tart import PRESETS, TartConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, TartConfig, PRESETS)
