"""hAdam, of any optimiser: the root of its second moment is kept, which 16 bits can hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .rounding import like, whole, wide


def rooted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` whose moments are kept in the dtype of the weights, those of squares as their roots.

    The root is as large as the gradients are: in float16 the second moment itself is 0 for gradients below 5.5e-3 and
    infinite above 256 (Björck et al. 2021, arXiv 2102.13565, whose hypot is this in registers that are too short for a
    square). Their code keeps (1 - b1) |g| in place of sqrt(1 - b2) |g|, up to 3.16 times as large as the gradients, so
    that the root may become infinite, and the weight still for ever, where g is finite; and a constant in a denominator
    made the root of small gradients too small by a factor of six. Directions come as float32.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            direction, after = tx.update(wide(updates), taken_up(state), params)
        return direction, like(state, laid_down(after))

    return optax.GradientTransformation(tx.init, update)


def hadam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) as a direction without its learning rate, `rooted`."""
    return rooted(optax.scale_by_adam(b1, b2, eps))


def of_squares(path: tuple) -> bool:
    """Whether an array of an optimiser's state is a mean of squares, which optax calls nu."""
    return any(getattr(key, "name", None) == "nu" for key in path)


def taken_up(state: Any, scale: Any = 1.0, root: bool = True) -> Any:
    """The state of an optimiser as it computes with, from what `laid_down` made of it."""

    def one(path: tuple, x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        x = x / jnp.asarray(scale, x.dtype)
        if not of_squares(path):
            return x
        return x * x if root else x / jnp.asarray(scale, x.dtype)

    return jax.tree_util.tree_map_with_path(one, whole(state))


def laid_down(state: Any, scale: Any = 1.0, root: bool = True) -> Any:
    """The state of an optimiser as it would be had all gradients been `scale` times as large, to be kept in 16 bits;
    with `root` not the means of squares but their roots.
    """

    def one(path: tuple, x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if not of_squares(path):
            return x * jnp.asarray(scale, x.dtype)
        return jnp.sqrt(x) * jnp.asarray(scale, x.dtype) if root else x * jnp.asarray(scale, x.dtype) ** 2

    return jax.tree_util.tree_map_with_path(one, state)
