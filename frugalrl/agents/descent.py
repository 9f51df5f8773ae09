"""Steps down a gradient, and the target weights that follow them: the end of every agent's `apply`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def shrunk(grads, most):
    """Gradients scaled so that their norm is at most `most` (Pascanu et al. 2013, algorithm 1)."""
    shrink = jnp.minimum(1.0, most / jnp.maximum(optax.tree.norm(grads), 1e-12))
    return jax.tree.map(lambda g: g * shrink, grads)


def descend(tx: optax.GradientTransformation, params, moments, grads, learning_rate) -> tuple[Any, Any]:
    """(params, moments) one step further down."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        direction, moments = tx.update(grads, moments, params)
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction), moments


def follow(target, params, tau):
    """Target weights moved by `tau` of the way, exactly for 0 and 1 (Lillicrap et al. 2015, algorithm 1)."""
    return jax.tree.map(lambda t, p: (1 - tau) * t + tau * p, target, params)
