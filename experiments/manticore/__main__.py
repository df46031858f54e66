"""The command `python -m experiments.manticore`."""

from experiments.manticore import PRESETS, ManticoreConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, ManticoreConfig, PRESETS)
