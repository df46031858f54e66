"""Where this library keeps what can be made again: tokens, compiled programs, fetched weights."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/jaxllm, or ~/.cache/jaxllm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxllm"
