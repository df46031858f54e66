"""The command `python -m experiments.composition`."""

import jax

from experiments.composition import DEVICES, PRESETS, CompositionConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)  # simulated, where the platform is the CPU
    run_experiment(main, CompositionConfig, PRESETS)
