"""The command `python -m experiments.opinion_mining`."""

from experiments.opinion_mining import PRESETS, OpinionConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, OpinionConfig, PRESETS)
