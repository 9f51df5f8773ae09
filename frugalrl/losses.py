"""Targets and losses, one equation on one sample; the caller maps them over a batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class NStep(NamedTuple):
    reward: jax.Array  # scalar, discounted sum of rewards up to the bootstrap
    discount: jax.Array  # scalar, what multiplies the bootstrap value; 0 after a termination
    last: jax.Array  # int32, index of the step whose next_obs is bootstrapped from


def n_step(rewards: jax.Array, terminated: jax.Array, truncated: jax.Array, gamma: jax.Array) -> NStep:
    """The n-step return of a window that stops at the first episode end (Sutton 1988; Hessel et al. 2018, equation 2).

    Args: rewards float32 [n]; terminated, truncated bool [n]; gamma scalar. A termination ends the return; a truncation
    also stops it, but is bootstrapped from.
    """
    ended = terminated | truncated
    before = jnp.cumsum(ended) - ended.astype(jnp.int32)  # ends strictly before each step
    alive = before == 0
    steps = jnp.arange(rewards.shape[0], dtype=jnp.int32)
    last = jnp.max(jnp.where(alive, steps, 0))
    powers = gamma ** steps.astype(rewards.dtype)
    reward = jnp.sum(jnp.where(alive, powers * rewards, 0.0))
    discount = gamma ** (last + 1).astype(rewards.dtype)
    return NStep(reward, jnp.where(terminated[last], 0.0, discount), last)


def huber(error: jax.Array) -> jax.Array:
    """Quadratic up to 1, linear after (Huber 1964; Mnih et al. 2015 clip the error's derivative, which is this)."""
    size = jnp.abs(error)
    return jnp.where(size <= 1, 0.5 * error * error, size - 0.5)


def squared(error: jax.Array) -> jax.Array:
    """Half the squared error."""
    return 0.5 * error * error
