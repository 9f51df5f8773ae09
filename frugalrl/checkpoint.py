"""Checkpoints of a whole run: learner, memory, environments and random keys, through Orbax; nothing is unpickled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import rng
from .policy import BadFile

KEEP = 2  # newest checkpoints


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit())


def save(folder: Path, step: int, tree: Any) -> None:
    """Write the checkpoint of environment step `step`; it appears whole or not at all.

    All but the newest KEEP are removed.
    """
    import orbax.checkpoint as ocp

    plain = jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / str(step), plain, force=True)
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(folder / str(old))


def restore(folder: Path, step: int, like: Any) -> Any:
    """Read a checkpoint into the structure of `like`, whose leaves have shapes and dtypes.

    Raises BadFile if it is damaged or does not fit.
    """
    import orbax.checkpoint as ocp

    plain = jax.eval_shape(lambda t: jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, t), like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            expected = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), plain)
            found = checkpointer.restore(folder.absolute() / str(step), expected)
    except Exception as error:  # Orbax and its storage raise many kinds for a damaged folder
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadFile(
            f"{folder / str(step)} is damaged or of another run ({reason}); remove it to resume from the one before"
        ) from None

    def back(x, old):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=rng.THREEFRY) if _is_key(old) else jnp.asarray(x)

    return jax.tree.map(back, found, like)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
