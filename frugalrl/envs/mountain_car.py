"""MountainCar-v0 in JAX: an engine too weak to climb the hill must first swing back and forth."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..types import Box, Discrete, Env
from .autoreset import autoreset

MIN_POSITION = -1.2
MAX_POSITION = 0.6
GOAL_POSITION = 0.5
MAX_SPEED = 0.07
FORCE = 0.001
GRAVITY = 0.0025
TIME_LIMIT = 200


def mountain_car(time_limit: int = TIME_LIMIT) -> Env:
    """Gymnasium's MountainCar-v0 (Moore 1990), which has no units.

    Observations are float32 [2]: position and velocity. Actions are 0 (left), 1 (coast) and 2 (right). The reward is -1
    at every step, the one that reaches the goal included.
    """
    obs = Box((2,), low=(MIN_POSITION, -MAX_SPEED), high=(MAX_POSITION, MAX_SPEED))
    return autoreset(start, advance, lambda state: state, obs, Discrete(3), time_limit)


def start(key: jax.Array) -> jax.Array:
    return jnp.stack([jax.random.uniform(key, (), jnp.float32, -0.6, -0.4), jnp.float32(0)])


def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    position, velocity = state
    throttle = jnp.float32(action) - 1
    velocity = velocity + throttle * FORCE - jnp.cos(3 * position) * GRAVITY
    velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
    position = jnp.clip(position + velocity, MIN_POSITION, MAX_POSITION)
    # the left wall stops the car; the right one cannot be met before the goal
    velocity = jnp.where((position <= MIN_POSITION) & (velocity < 0), 0.0, velocity)
    terminated = (position >= GOAL_POSITION) & (velocity >= 0)
    return jnp.stack([position, velocity]), jnp.float32(-1), terminated
