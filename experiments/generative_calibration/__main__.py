"""The command `python -m experiments.generative_calibration`."""

from experiments.generative_calibration import PRESETS, CalibrationConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, CalibrationConfig, PRESETS)
