"""Keep compiled programs between runs, so that the second start takes seconds."""

import jax

from jaxllm.user_cache import user_cache_folder


def enable() -> None:
    """Cache every compiled program in the user's cache folder.

    Leaves the setting alone where the user made one (JAX_COMPILATION_CACHE_DIR, or
    `jax.config.jax_compilation_cache_dir`; JAX_ENABLE_COMPILATION_CACHE=false turns it off).
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
