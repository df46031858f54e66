"""The model that a command line names: a training run, or somebody's pretrained one."""

import os
from pathlib import Path
from typing import Literal

from jaxllm.errors import UserError
from jaxllm.pretrained import from_pretrained, is_pretrained
from jaxllm.train.load import load_run


def load_model(source: str, checkpoint: Literal["latest", "best"] = "latest", param_dtype: str = "float32"):
    """Return (ModelConfig, params, tokenizer or None).

    Args:
      source: the folder of a training run, or what `from_pretrained` reads.
      checkpoint: which one of a training run.
      param_dtype: what a pretrained model's numbers become; a run keeps its own.

    Raises:
      UserError: there is no model, or it cannot be read.
    """
    source = os.path.expanduser(source)
    if (Path(source) / "checkpoints").is_dir():
        return load_run(source, checkpoint)
    if is_pretrained(source):
        return from_pretrained(source, param_dtype=param_dtype)
    raise UserError(
        f"no trained model in '{source}'; give the --out folder of a training run, a Hugging Face folder, "
        "a .safetensors or .gguf file, or the hub's OWNER/NAME"
    )


def load_model_and_tokenizer(
    source: str, checkpoint: Literal["latest", "best"] = "latest", param_dtype: str = "float32"
):
    """Return (ModelConfig, params, tokenizer), and insist on a tokenizer; see `load_model`."""
    model, params, tokenizer = load_model(source, checkpoint, param_dtype)
    if tokenizer is None:
        raise UserError(f"'{source}' has no tokenizer.json, which turning text into tokens needs")
    return model, params, tokenizer
