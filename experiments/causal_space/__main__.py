"""The command `python -m experiments.causal_space`."""

from experiments.causal_space import PRESETS, CausalSpaceConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, CausalSpaceConfig, PRESETS)
