"""Checkpoints of a whole run: learner, memory, environments and random keys, through Orbax; nothing is unpickled."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import rng
from .errors import BadFile

KEEP = 2  # newest checkpoints
SCRAP = ".removed"  # ends the name of a checkpoint that is on its way out


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit())


def save(folder: Path, step: int, tree: Any) -> None:
    """Write the checkpoint of environment step `step`; it appears whole or not at all.

    All but the newest KEEP are removed. Raises OSError if it cannot be written.
    """
    import orbax.checkpoint as ocp

    for scrap in _scraps(folder):
        shutil.rmtree(scrap)
    plain = jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)
    try:
        # not StandardCheckpointer: a thread of it waits for minutes for a folder that could not be made
        with _silent(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute() / str(step), args=ocp.args.StandardSave(plain), force=True)
    except Exception as error:  # Orbax and its storage raise many kinds when a disk is full
        for scrap in _scraps(folder):
            shutil.rmtree(scrap, ignore_errors=True)
        raise OSError(f"the checkpoint {folder / str(step)} cannot be written: {_reason(error)}") from error
    for old in steps(folder)[:-KEEP]:
        gone = (folder / str(old)).rename(folder / f"{old}{SCRAP}")  # never half a checkpoint under its name
        shutil.rmtree(gone)


def restore(folder: Path, step: int, like: Any) -> Any:
    """Read a checkpoint into the structure of `like`, whose leaves have shapes and dtypes.

    Raises BadFile if it is damaged or does not fit.
    """
    import orbax.checkpoint as ocp

    plain = jax.eval_shape(lambda t: jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, t), like)
    try:
        with _silent(), ocp.StandardCheckpointer() as checkpointer:
            expected = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), plain)
            found = checkpointer.restore(folder.absolute() / str(step), expected)
        jax.tree.map(_same_shape, found, expected)  # Orbax does not mind
    except Exception as error:  # Orbax and its storage raise many kinds for a damaged folder
        raise BadFile(
            f"{folder / str(step)} is damaged or of another run ({_reason(error)}); "
            "remove it to resume from the one before"
        ) from None

    def back(x, old):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=rng.THREEFRY) if _is_key(old) else jnp.asarray(x)

    return jax.tree.map(back, found, like)


def _same_shape(found: np.ndarray, expected: np.ndarray) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"an array is {found.shape}, expected {expected.shape}")


def _scraps(folder: Path) -> list[Path]:
    """What a process that was killed has left unfinished."""
    return [p for p in folder.glob("*") if "orbax-checkpoint-tmp" in p.name or p.name.endswith(SCRAP)]


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def _silent():
    """Keeps Orbax's threads from logging whole tracebacks of what is raised anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
