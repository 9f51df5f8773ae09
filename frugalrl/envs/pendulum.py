"""Pendulum-v1 in JAX: swing a pendulum up and hold it there with little torque."""

from __future__ import annotations

from math import pi

import jax
import jax.numpy as jnp

from ..types import Box, Env
from .autoreset import autoreset

GRAVITY = 10.0  # m/s^2
MASS = 1.0  # kg
LENGTH = 1.0  # m
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
TIME_STEP = 0.05  # s
TIME_LIMIT = 200


def pendulum(time_limit: int = TIME_LIMIT) -> Env:
    """Gymnasium's Pendulum-v1.

    Observations are float32 [3]: cosine and sine of the angle from upright, angular velocity (rad/s). Actions are
    float32 [1], a torque (N m) that is clipped to its limits. The reward is minus a cost of the torque and of the angle
    and speed before it; the task never terminates.
    """
    high = (1.0, 1.0, MAX_SPEED)
    obs = Box((3,), low=tuple(-bound for bound in high), high=high)
    return autoreset(start, advance, observe, obs, Box((1,), low=-MAX_TORQUE, high=MAX_TORQUE), time_limit)


def start(key: jax.Array) -> jax.Array:
    """float32 [2]: an angle in [-pi, pi] (rad) and an angular velocity (rad/s)."""
    return jax.random.uniform(key, (2,), jnp.float32, -1, 1) * jnp.array([pi, 1], jnp.float32)


def observe(state: jax.Array) -> jax.Array:
    angle, speed = state
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])


def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    angle, speed = state
    torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
    cost = angle * angle + 0.1 * speed * speed + 0.001 * torque * torque

    rate = 3 * GRAVITY / (2 * LENGTH) * jnp.sin(angle) + 3 / (MASS * LENGTH**2) * torque
    speed = jnp.clip(speed + rate * TIME_STEP, -MAX_SPEED, MAX_SPEED)
    angle = angle + speed * TIME_STEP
    # Gymnasium lets the angle grow and wraps it in the cost; float32 keeps more digits if it is wrapped here
    angle = angle - 2 * pi * jnp.round(angle / (2 * pi))
    return jnp.stack([angle, speed]), -cost, jnp.bool_(False)
