"""Environments so small that their action values are known.

The first five are Andy Jones' probes (andyljones.com/posts/rl-debugging.html): each needs one more thing to work than
the one before it. The sixth never ends and is only cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from frugalrl.envs.autoreset import autoreset
from frugalrl.types import Box, Discrete, Env

GAMMA = 0.5


class Probe(NamedTuple):
    """An environment and the values of every action at each observation it gives."""

    env: Env
    values: dict[float, tuple[float, ...]]  # observation -> value of each action


def _env(start: Callable, advance: Callable, actions: int, time_limit: int = 10) -> Env:
    """States are float32 scalars, and so are the observations, in a vector of one."""
    return autoreset(start, advance, lambda state: state[None], Box((1,)), Discrete(actions), time_limit)


def _zero(key: jax.Array) -> jax.Array:
    return jnp.float32(0)


def _sign(key: jax.Array) -> jax.Array:
    return jax.random.rademacher(key, (), jnp.float32)


def _prize(action: jax.Array) -> jax.Array:
    """1 for action 1, -1 for action 0."""
    return 2 * action.astype(jnp.float32) - 1


def _bowl(s: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return s, 1 - (a[0] - 0.3 * s) ** 2, jnp.bool_(False)


# Continuous actions: best is 0.3 times the observation. It is cut off at once, and nothing changes, so the best action
# is worth 1 / (1 - GAMMA), and another one less by the square of its distance.
BOWL = _env(_sign, _bowl, 1, time_limit=1)._replace(actions=Box((1,), low=-2.0, high=1.0))

PROBES = {
    "constant reward": Probe(_env(_zero, lambda s, a: (s, jnp.float32(1), jnp.bool_(True)), 1), {0: (1,)}),
    "reward of the observation": Probe(_env(_sign, lambda s, a: (s, s, jnp.bool_(True)), 1), {-1: (-1,), 1: (1,)}),
    "reward after two steps": Probe(_env(_zero, lambda s, a: (s + 1, s, s > 0), 1), {0: (GAMMA,), 1: (1,)}),
    "reward of the action": Probe(_env(_zero, lambda s, a: (s, _prize(a), jnp.bool_(True)), 2), {0: (-1, 1)}),
    "reward of both": Probe(
        _env(_sign, lambda s, a: (s, s * _prize(a), jnp.bool_(True)), 2), {-1: (1, -1), 1: (-1, 1)}
    ),
    "cut off at once": Probe(
        _env(_zero, lambda s, a: (s, jnp.float32(1), jnp.bool_(False)), 1, time_limit=1), {0: (1 / (1 - GAMMA),)}
    ),
}
