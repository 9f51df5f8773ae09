"""Acrobot-v1 in JAX: swing a two-link robot, driven only at the middle joint, until its tip is above the bar."""

from __future__ import annotations

from math import pi

import jax
import jax.numpy as jnp

from ..types import Box, Discrete, Env
from .autoreset import autoreset

GRAVITY = 9.8  # m/s^2
MASS = 1.0  # kg, of either link
LENGTH = 1.0  # m, of the first link
CENTRE = 0.5  # m, from a link's joint to its centre of mass
INERTIA = 1.0  # kg m^2, of either link
MAX_SPEEDS = (4 * pi, 9 * pi)  # rad/s
TIME_STEP = 0.2  # s
TIME_LIMIT = 500


def acrobot(time_limit: int = TIME_LIMIT) -> Env:
    """Gymnasium's Acrobot-v1, with the dynamics of Sutton and Barto's book (Sutton 1996), not those of the NIPS paper.

    Observations are float32 [6]: cosine and sine of the first link's angle from hanging down, cosine and sine of the
    second link's angle from the first, and both angular velocities (rad/s). Actions 0, 1 and 2 are torques of -1, 0 and
    1 N m. The reward is -1 a step, and 0 at the step that swings the tip above the line.
    """
    high = (1.0, 1.0, 1.0, 1.0, *MAX_SPEEDS)
    obs = Box((6,), low=tuple(-bound for bound in high), high=high)
    return autoreset(start, advance, observe, obs, Discrete(3), time_limit)


def start(key: jax.Array) -> jax.Array:
    """float32 [4]: both angles (rad), both angular velocities (rad/s)."""
    return jax.random.uniform(key, (4,), jnp.float32, -0.1, 0.1)


def observe(state: jax.Array) -> jax.Array:
    angles, speeds = state[:2], state[2:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([cos[0], sin[0], cos[1], sin[1], speeds[0], speeds[1]])


def rates(state: jax.Array, torque: jax.Array) -> jax.Array:
    """The time derivative of a state under a torque at the second joint."""
    angle1, angle2, speed1, speed2 = state
    sin2, cos2 = jnp.sin(angle2), jnp.cos(angle2)
    coupling = MASS * LENGTH * CENTRE

    # the mass matrix is [[m11, m12], [m12, m22]]
    m22 = MASS * CENTRE**2 + INERTIA
    m12 = m22 + coupling * cos2
    m11 = m22 + MASS * (CENTRE**2 + LENGTH**2) + INERTIA + 2 * coupling * cos2

    pull2 = MASS * CENTRE * GRAVITY * jnp.sin(angle1 + angle2)
    pull1 = (MASS * CENTRE + MASS * LENGTH) * GRAVITY * jnp.sin(angle1) + pull2
    bias1 = pull1 - coupling * sin2 * speed2 * (speed2 + 2 * speed1)
    bias2 = pull2 + coupling * sin2 * speed1 * speed1

    share = m12 / m11
    rate2 = (torque + share * bias1 - bias2) / (m22 - share * m12)
    rate1 = -share * rate2 - bias1 / m11
    return jnp.stack([speed1, speed2, rate1, rate2])


def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    torque = jnp.float32(action) - 1
    # one step of the classical Runge-Kutta method
    k1 = rates(state, torque)
    k2 = rates(state + TIME_STEP / 2 * k1, torque)
    k3 = rates(state + TIME_STEP / 2 * k2, torque)
    k4 = rates(state + TIME_STEP * k3, torque)
    state = state + TIME_STEP / 6 * (k1 + 2 * (k2 + k3) + k4)

    limits = jnp.array(MAX_SPEEDS, jnp.float32)
    angles, speeds = state[:2], jnp.clip(state[2:], -limits, limits)
    angles = angles - 2 * pi * jnp.round(angles / (2 * pi))
    height = -jnp.cos(angles[0]) - jnp.cos(angles[0] + angles[1])
    terminated = height > LENGTH
    return jnp.concatenate([angles, speeds]), jnp.where(terminated, jnp.float32(0), jnp.float32(-1)), terminated
