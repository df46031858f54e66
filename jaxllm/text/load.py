"""A trained model back from the folder of its run, or somebody's pretrained one."""

import os
from pathlib import Path
from typing import Literal

import jax

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.pretrained import from_pretrained, is_pretrained
from jaxllm.text.config import model_from_dict
from jaxllm.train.checkpoint import Checkpoints, Damaged
from jaxllm.train.folder import run_folder

TOKENIZER_FILE = "tokenizer.json"


def load_run(folder, which: Literal["latest", "best"] = "latest"):
    """Return (ModelConfig, params on the first device, tokenizer) of a training run.

    Args:
      folder: the run's `out`.
      which: the newest checkpoint, or the one with the lowest held-out loss.

    Raises:
      UserError: there is no run in the folder.
    """
    folder = run_folder(folder)
    if not (folder / "checkpoints").is_dir() or not (folder / TOKENIZER_FILE).exists():
        raise UserError(f"no trained model in {folder}; give the --out folder of a training run")
    kept = Checkpoints(folder / "checkpoints")
    _, (model, params), _ = kept.newest_whole(
        lambda step: _load(kept, step), first=kept.best() if which == "best" else None
    )
    return model, params, data.load_tokenizer(str(folder / TOKENIZER_FILE))


def _load(kept: Checkpoints, step: int):
    try:
        model = model_from_dict(kept.config(step)["model"])
    except UserError as error:  # a config that was written was a possible one
        raise Damaged(str(error)) from error
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), models.shapes(model)
    )
    return model, kept.restore_params(step, shapes)


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
