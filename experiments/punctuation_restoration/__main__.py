"""The command `python -m experiments.punctuation_restoration`."""

from experiments.punctuation_restoration import PRESETS, PunctuationConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, PunctuationConfig, PRESETS)
