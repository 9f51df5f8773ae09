"""JAX as this library wants it, and where its compiled programs are kept."""

from __future__ import annotations

import os


def cache_folder() -> str:
    """Where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR, else the user's cache folder."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "frugalrl", "jax")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def set_up_jax() -> None:
    """JAX as this library wants it; a setting that the caller has made stays."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", cache_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # Dispatch in the calling thread: small calls are four times as quick, and threads that each run seeds do not queue
    # up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
