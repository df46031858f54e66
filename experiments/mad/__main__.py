"""The command `python -m experiments.mad`."""

from experiments.mad import PRESETS, MadConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, MadConfig, PRESETS)
