"""The command `python -m experiments.phase_transition`."""

from experiments.phase_transition import PRESETS, PhaseTransitionConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, PhaseTransitionConfig, PRESETS)
