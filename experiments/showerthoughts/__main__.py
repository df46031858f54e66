"""The command `python -m experiments.showerthoughts`."""

from experiments.showerthoughts import PRESETS, ShowerConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, ShowerConfig, PRESETS)
