"""A trained model back from the folder of its run."""

from pathlib import Path
from typing import Literal

import jax

from jaxllm import data, models
from jaxllm.errors import UserError
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.config import model_from_dict

TOKENIZER_FILE = "tokenizer.json"


def load_run(folder, which: Literal["latest", "best"] = "latest"):
    """Return (ModelConfig, params on the first device, tokenizer) of a training run.

    Args:
      folder: the run's `out`.
      which: the newest checkpoint, or the one with the lowest held-out loss.

    Raises:
      UserError: there is no run in the folder.
    """
    folder = Path(folder)
    if not (folder / "checkpoints").is_dir() or not (folder / TOKENIZER_FILE).exists():
        raise UserError(f"no trained model in {folder}; give the --out folder of a training run")
    with Checkpoints(folder / "checkpoints") as kept:
        step = kept.latest() if which == "latest" else kept.best()
        if step is None:
            raise UserError(f"{folder} holds no finished checkpoint yet; train a few steps more")
        model = model_from_dict(kept.config(step)["model"])
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), models.shapes(model)
        )
        params = kept.restore_params(step, shapes)
    return model, params, data.load_tokenizer(str(folder / TOKENIZER_FILE))
