"""jaxllm train"""

import copy
import dataclasses
from collections.abc import Sequence

from jaxllm import parallel
from jaxllm.cli.parse import parse
from jaxllm.models.presets import derived_fields
from jaxllm.train import TrainConfig, train
from jaxllm.train.presets import TRAIN_PRESETS

_DESCRIPTION = """Train a language model, or go on where the checkpoints in --out end.

  jaxllm train --preset gpt2-micro --data my.txt --tokenizer bpe:2048 --steps 2000
  jaxllm train --preset shakespeare-char --data shakespeare.txt
  jaxllm train --preset gpt2 --data tfds:lm1b --mesh.fsdp 8 --distributed"""


def open_presets(presets):
    """Return the presets with what a model derives left open, as starting values of a command line.

    So that --model.embed-dim 256 alone also changes the head and mlp sizes that follow from it.
    """

    def opened(preset):
        config = preset()
        model = copy.copy(config.model)
        for field in derived_fields(model):
            object.__setattr__(model, field, None)
        return dataclasses.replace(config, model=model)

    return {name: (lambda preset=preset: opened(preset)) for name, preset in presets.items()}


def main(argv: Sequence[str]) -> None:
    """Train as the command line says and print the held-out scores."""
    config, _ = parse(
        TrainConfig, argv, prog="jaxllm train", description=_DESCRIPTION,
        presets=open_presets(TRAIN_PRESETS), default_preset="gpt2-micro",
    )  # fmt: skip
    if config.distributed:
        parallel.initialize()
    trained = train(config)
    scores = trained.evaluation
    print(
        f"held-out loss {scores.loss:.4f} nats a token, {scores.bits_per_byte:.4f} bits per byte, "
        f"over {scores.tokens:,} tokens\nsample with: jaxllm generate {config.out} --prompt 'The '"
    )
