"""How a process of this library is set up: JAX, where its compiled programs are kept, memory, and modules."""

from __future__ import annotations

import ctypes
import os
import sys

_OF_MALLOC = ("MALLOC_", "GLIBC_TUNABLES")  # variables


def cache_folder() -> str:
    """Where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR, else the user's cache folder."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "frugalrl", "jax")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def module_path() -> list[str]:
    """Where this process finds modules, for one that it starts: an environment may lie beside the user's script."""
    return [place or os.getcwd() for place in sys.path]


def set_up_jax() -> None:
    """JAX as this library wants it; a setting that the caller has made stays."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", cache_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # Dispatch in the calling thread: small calls are four times as quick, and threads that each run seeds do not queue
    # up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep up to 256 MiB of what is freed, where it would give back all but 128 KiB to 64 MiB.

    Every call of a compiled program allocates what it makes, and every load of weights a copy of them. Memory that was
    given back in between comes as new pages, which the kernel clears: much of the time of an update of wide networks
    (`benchmarks/update_cost.py`). Arrays above 64 MiB still go back at once. Nothing happens without glibc, or where
    the caller's environment has a setting of its own.
    """
    if not sys.platform.startswith("linux") or any(n.startswith(_OF_MALLOC) for n in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 64 * 2**20)  # M_MMAP_THRESHOLD
        mallopt(-1, 256 * 2**20)  # M_TRIM_THRESHOLD
