"""Keep compiled programs between runs, so that the second start takes seconds."""

import os
import warnings

import jax

from jaxllm.errors import UserError
from jaxllm.user_cache import user_cache_folder


def enable() -> None:
    """Cache every compiled program in the user's cache folder; warn if that cannot be written.

    Leaves the setting alone where the user made one (JAX_COMPILATION_CACHE_DIR, or
    `jax.config.jax_compilation_cache_dir`; JAX_ENABLE_COMPILATION_CACHE=false turns it off).
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = user_cache_folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"'{folder}' cannot be written")
    except (OSError, UserError) as error:
        warnings.warn(
            f"compiled programs are not kept for the next start ({error}); set XDG_CACHE_HOME to a folder "
            "that can be written",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
