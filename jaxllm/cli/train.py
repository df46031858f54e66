"""jaxllm train"""

import copy
import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxllm import parallel
from jaxllm.cli.hints import TRAIN_HINTS
from jaxllm.cli.parse import parse, take
from jaxllm.data.examples import MESSAGES
from jaxllm.errors import UserError
from jaxllm.models.presets import derived_fields
from jaxllm.text import TrainConfig, train
from jaxllm.text.config_file import read_config
from jaxllm.text.load import has_tokenizer
from jaxllm.text.own_fields import OURS
from jaxllm.text.presets import TRAIN_PRESETS
from jaxllm.text.samples import prompt_text
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.folder import run_folder

_SHOWN = 60  # characters of a prompt
_DESCRIPTION = """Train a language model, or go on where the checkpoints in --out end.

  jaxllm train --preset gpt2-micro --data my.txt --tokenizer bpe:2048 --steps 2000
  jaxllm train --preset shakespeare-char --data shakespeare.txt
  jaxllm train --preset gpt2 --data tfds:lm1b --mesh.fsdp 8 --distributed
  jaxllm train --config runs/gpt2-micro --out runs/again --optim.learning-rate 1e-3

--config starts from the config.json of a run's folder, from what `jaxllm plan` wrote, or from a JSON or YAML
file of your own (preset: gpt2-mini, steps: 5000, optim: ...), instead of from a preset."""


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


def is_decoder(config: TrainConfig) -> bool:
    """Return whether a run's model predicts the next token: encoders have presets too, to be read alone."""
    return getattr(config.model, "causal", True)


def parse_config(argv: Sequence[str], *, prog: str, description: str, listed=is_decoder) -> TrainConfig:
    """Return the run that a command line describes, from a preset or a file and the fields it sets."""
    argv, file = take(argv, "--config")
    presets, default = TRAIN_PRESETS, "gpt2-micro"
    if file is not None:
        if take(argv, "--preset")[1] is not None:
            raise UserError("--preset and --config both set the values to start from; give one of them")
        presets, default = {file: lambda: read_config(file)}, file
    config, _ = parse(
        TrainConfig, argv, prog=prog, description=description,
        presets=open_presets(presets), default_preset=default,
        listed=listed, hints=TRAIN_HINTS,
    )  # fmt: skip
    return config


def check_left_to_start(argv: Sequence[str], start: str, own: Sequence[str] = OURS) -> None:
    """Refuse flags of what the model in `start` decides, which would change nothing.

    Args:
      argv: the command line.
      start: where the model is.
      own: the model's fields that are the run's.

    Raises:
      UserError: names one.
    """
    flags = {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    decided = {flag for flag in flags if flag == "--preset" or flag.startswith("--model.")}
    if "--tokenizer" in flags and has_tokenizer(start):
        decided |= {"--tokenizer"}
    for flag in sorted(decided - {f"--model.{name.replace('_', '-')}" for name in own}):
        what = "tokenizer" if flag == "--tokenizer" else "model"
        raise UserError(
            f"{flag} changes nothing, since --start '{start}' decides the {what}; leave out one of the two"
        )


def main(argv: Sequence[str]) -> None:
    """Train as the command line says and print the held-out scores."""
    config = parse_config(argv, prog="jaxllm train", description=_DESCRIPTION)
    if config.start is not None:
        check_left_to_start(argv, config.start)
    if config.distributed:
        parallel.initialize()
    trained = train(config)
    if jax.process_index() != 0:
        return
    scores = trained.evaluation
    out = shlex.quote(config.out)
    corpus = trained.run.corpus
    prompt = prompt_text(corpus) or "The "
    prompt = shlex.quote(prompt if prompt.isprintable() and len(prompt) <= _SHOWN else "...")
    use = f"sample with: jaxllm generate {out} --prompt {prompt}"
    if corpus.kind == MESSAGES:
        use = f"talk with: jaxllm chat {out}"
    kept = Checkpoints(run_folder(config.out) / "checkpoints")
    if kept.best_loss() < math.inf and kept.best() != kept.latest():
        best = f"step {kept.best():,}, held-out loss {kept.best_loss():.4f}"
        use += f"\nevaluated best: {best}; --checkpoint best takes it in place of step {kept.latest():,}"
    curves = Path(config.out, "curves.png")
    drawn = f"; curves in {shlex.quote(str(curves))}" if config.progress and curves.exists() else ""
    if trained.speed:
        use = f"trained at {trained.speed:,.0f} tokens/s{drawn}\n{use}"
    print(
        f"held-out loss {scores['loss']:.4f} nats a token, {scores['bits_per_byte']:.4f} bits per byte, "
        f"over {scores['tokens']:,} tokens\n{use}"
    )
