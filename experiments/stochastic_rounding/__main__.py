"""The command `python -m experiments.stochastic_rounding`."""

from experiments.stochastic_rounding import PRESETS, StochasticRoundingConfig, main
from jaxllm.cli.experiment import run_experiment
from jaxllm.cli.train import open_presets

if __name__ == "__main__":
    run_experiment(main, StochasticRoundingConfig, open_presets(PRESETS))
