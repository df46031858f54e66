"""The command `python -m experiments.tiled_training`."""

import jax

from experiments.tiled_training import PRESETS, TiledTrainingConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # simulated devices, where the platform is the CPU
    run_experiment(main, TiledTrainingConfig, PRESETS)
