"""The command `python -m experiments.predictive_writing`."""

from experiments.predictive_writing import PRESETS, WritingConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, WritingConfig, PRESETS)
