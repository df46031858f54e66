"""Where this library keeps what can be made again: tokens, compiled programs, forecasts, fetched weights."""

import os
from pathlib import Path

from jaxllm.errors import UserError


def user_cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/jaxllm, or ~/.cache/jaxllm.

    Raises:
      UserError: there is neither.
    """
    place = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not os.path.isabs(place):  # no HOME and no such user; or relative, which the standard forbids
        raise UserError(
            f"there is no home folder to keep the cache in ('{place}'); set the environment variable "
            "XDG_CACHE_HOME to a folder that can be written"
        )
    return Path(place) / "jaxllm"
