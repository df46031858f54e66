"""The command `python -m experiments.anchored_answers`."""

from experiments.anchored_answers import PRESETS, AnchoredConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, AnchoredConfig, PRESETS)
