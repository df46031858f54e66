"""The command `python -m experiments.test_time_training`."""

from experiments.test_time_training import PRESETS, TestTimeConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, TestTimeConfig, PRESETS)
