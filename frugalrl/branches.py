"""A condition that is worth its name under `vmap` too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def if_any(due: Any, compute: Callable, otherwise: Callable, *args: Any) -> Any:
    """`lax.cond`, for a `compute` that is dear and seldom due: (*args) -> a tree like that of `otherwise`.

    Under `vmap` a cond would always compute both; here the members of a vmap, or of a vmap of vmaps, compute only if
    one of them is due, and each has its own result then. Both functions have all arrays from their arguments.
    """

    @jax.custom_batching.custom_vmap
    def either(due, *args):
        return jax.lax.cond(due, compute, otherwise, *args)

    @either.def_vmap
    def _(size, mapped, due, *args):
        axes = 0, *jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped[1:])

        def both(due, *args):
            return jax.tree.map(lambda x, y: jnp.where(due, x, y), compute(*args), otherwise(*args))

        def neither(due, *args):
            return otherwise(*args)

        due = jnp.broadcast_to(due, size)
        found = if_any(jnp.any(due), jax.vmap(both, axes), jax.vmap(neither, axes), due, *args)
        return found, jax.tree.map(lambda _: True, found)

    return either(due, *args)
