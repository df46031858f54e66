"""The command `python -m experiments.vocabulary_compression`."""

from experiments.vocabulary_compression import PRESETS, VocabularyCompressionConfig, main
from jaxllm.cli.experiment import run_experiment
from jaxllm.cli.train import open_presets

if __name__ == "__main__":
    run_experiment(main, VocabularyCompressionConfig, open_presets(PRESETS))
