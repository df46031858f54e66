"""Where the real data of an experiment lies: a folder that the environment names."""

import os
from pathlib import Path

from jaxllm.errors import UserError

VARIABLE = "JAXLLM_DATA"


def data_folder(*parts: str) -> Path:
    """Return a folder or file of real data: `$JAXLLM_DATA/PART/PART...`.

    Nothing of it belongs to this repository: every set keeps its own licence.

    Raises:
      UserError: the variable is not set, or the folder has no such part.
    """
    root = os.environ.get(VARIABLE)
    if not root:
        raise UserError(
            f"{VARIABLE} is not set: it names a folder of real data, with {'/'.join(parts)}; set it, "
            "or give --data"
        )
    path = Path(root, *parts).expanduser()
    if not path.exists():
        raise UserError(
            f"{path} does not exist; {VARIABLE} names the folder of real data: put it there, or give --data"
        )
    return path
