"""jaxllm convert"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import tyro

from jaxllm.cli.hints import USE_HINTS
from jaxllm.cli.parse import parse
from jaxllm.config import Config, UserPath
from jaxllm.pretrained.save import check_new, save_pretrained
from jaxllm.text.card import model_card
from jaxllm.text.load import export_adapter, is_run, load_model

_DESCRIPTION = """Write a model as a Hugging Face folder: config.json, safetensors, tokenizer.json, README.md.

  jaxllm convert runs/my-run exported                 # our training run, for transformers
  jaxllm convert model.gguf exported                  # a GGUF file, dequantised
  jaxllm convert OWNER/NAME exported --dtype bfloat16 # a model of the hub, or any folder of one
  jaxllm convert runs/my-lora adapter --adapter       # what a run with --lora.rank trained, for peft

Without --adapter such a run is written merged with the model it was trained on.

`jaxllm generate` reads every one of these sources as it is, so none needs converting for us."""


@dataclass(frozen=True)
class ConvertConfig(Config):
    """Values of `jaxllm convert`: from what, to where, how."""

    source: tyro.conf.Positional[UserPath]  # training run, Hugging Face folder, .safetensors, .gguf, hub id
    folder: tyro.conf.Positional[UserPath]  # where to write; new or empty
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the written numbers
    adapter: bool = False  # of a run with --lora.rank: write its adapter alone, as peft does
    max_shard_size: str = "5GB"  # larger models become several files
    checkpoint: Literal["latest", "best"] = "latest"  # of a training run

    def __post_init__(self):
        super().__post_init__()
        if self.adapter:
            self.refuse_set(("dtype", "max_shard_size"), "a whole model")


def main(argv: Sequence[str]) -> None:
    """Convert as the command line says, and say what was written."""
    config, _ = parse(ConvertConfig, argv, prog="jaxllm convert", description=_DESCRIPTION, hints=USE_HINTS)
    check_new(config.folder)  # before a model is read, or downloaded, for nothing
    if config.adapter:
        card = model_card(config.source, config.checkpoint, adapter=True) if is_run(config.source) else None
        view = export_adapter(config.source, config.folder, config.checkpoint, card)
        names = ", ".join(view.matrices)
        print(f"an adapter of rank {view.config.rank} beside {names} written to {config.folder}")
        return
    model, params, tokenizer = load_model(config.source, config.checkpoint, config.dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)
    card = model_card(config.source, config.checkpoint)
    save_pretrained(
        config.folder, model, params, tokenizer, max_shard_size=config.max_shard_size, card=card
    )
    folder = shlex.quote(config.folder)
    use = f"sample with: jaxllm generate {folder} --prompt 'The '"
    if model.labels:
        use = f"label with: jaxllm label {folder} --text 'A text.'"
    print(
        f"{model.num_params:,} parameters in {config.dtype}"
        f"{'' if tokenizer is not None else ', no tokenizer,'} written to {config.folder}\n"
        f"{use}"
    )
