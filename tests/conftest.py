"""Settings of the whole test session: JAX may neither promote a dtype nor a rank without being asked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # compiled programs are kept from one session to the next, and shared with the processes that tests start
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """The programs of a module are used by no other, and those of all would take gigabytes."""
    yield
    import jax

    jax.clear_caches()
