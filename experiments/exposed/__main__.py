"""The command `python -m experiments.exposed`."""

from experiments.exposed import PRESETS, ExposedConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, ExposedConfig, PRESETS)
