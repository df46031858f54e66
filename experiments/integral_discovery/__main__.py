"""The command `python -m experiments.integral_discovery`."""

from experiments.integral_discovery import PRESETS, IntegralConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, IntegralConfig, PRESETS)
