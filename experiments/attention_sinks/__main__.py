"""The command `python -m experiments.attention_sinks`."""

from experiments.attention_sinks import PRESETS, AttentionSinksConfig, main
from jaxllm.cli.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(main, AttentionSinksConfig, PRESETS)
