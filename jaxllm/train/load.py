"""A trained model back from the folder of its run."""

from typing import Literal

import jax

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.train.checkpoint import Checkpoints, Damaged
from jaxllm.train.config import model_from_dict
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
