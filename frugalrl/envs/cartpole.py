"""CartPole-v1 in JAX: keep a pole upright on a cart by pushing the cart left or right.

The walk of an observation to a gradient begins in `advance` and goes on in `runtime/compiled.py`, `collect`.
"""

from __future__ import annotations

from math import inf, radians

import jax
import jax.numpy as jnp

from ..types import Box, Discrete, Env
from .autoreset import autoreset

GRAVITY = 9.8  # m/s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_LENGTH = 0.5  # m, from the joint to the pole's centre of mass
FORCE = 10.0  # N
TIME_STEP = 0.02  # s
MAX_POSITION = 2.4  # m
MAX_ANGLE = radians(12)
TIME_LIMIT = 500


def cartpole(time_limit: int = TIME_LIMIT) -> Env:
    """Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983; friction left out, Euler's method).

    Observations are float32 [4]: position (m), velocity (m/s), the pole's angle from upright (rad) and its angular
    velocity (rad/s). Actions are 0 (push left) and 1 (push right). The reward is 1 at every step, the last included.
    """
    high = (2 * MAX_POSITION, inf, 2 * MAX_ANGLE, inf)
    obs = Box((4,), low=tuple(-bound for bound in high), high=high)
    return autoreset(start, advance, lambda state: state, obs, Discrete(2), time_limit)


def start(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)


def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    _, velocity, angle, spin = state
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    push = jnp.where(action == 1, FORCE, -FORCE)

    # the cart's acceleration if the pole did not turn faster or slower; that it does takes some of it away
    rigid = (push + POLE_MASS * HALF_LENGTH * spin * spin * sin) / TOTAL_MASS
    spin_rate = (GRAVITY * sin - cos * rigid) / (HALF_LENGTH * (4 / 3 - POLE_MASS / TOTAL_MASS * cos * cos))
    acceleration = rigid - POLE_MASS * HALF_LENGTH / TOTAL_MASS * spin_rate * cos

    state = state + TIME_STEP * jnp.stack([velocity, acceleration, spin, spin_rate])
    terminated = (jnp.abs(state[0]) > MAX_POSITION) | (jnp.abs(state[2]) > MAX_ANGLE)
    return state, jnp.float32(1), terminated
