"""A JAX environment as an ordinary gymnasium.Env: for actors, evaluation and whoever else steps one at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium
import jax
import numpy as np

from .. import rng
from ..types import Box, Discrete, Env, Space
from ..xla import set_up_jax


class Played(gymnasium.Env):
    """Steps an `Env` in programs that all its instances in a process share. It does not render.

    Observations and actions are arrays as the `Env` describes them. An episode begins from a key drawn with the seed of
    `reset`; what the `Env` begins by itself after the last step of an episode is not seen.
    """

    def __init__(self, env: Env):
        self._reset, self._step = _programs(env)
        self.observation_space, self.action_space = _space(env.obs), _space(env.actions)
        self._state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._state, obs = self._reset(int(self.np_random.integers(2**31)))
        return np.asarray(obs), {}

    def step(self, action):
        self._state, step = self._step(self._state, np.asarray(action, self.action_space.dtype))
        obs, reward, terminated, truncated = map(np.asarray, (step.next_obs, *step[1:4]))
        return obs, float(reward), bool(terminated), bool(truncated), {}


@cache
def _programs(env: Env):
    """(seed -> (state, obs), (state, action) -> (state, Step)); the state holds the key of what is to come."""
    set_up_jax()

    def reset(seed):
        begin, later = jax.random.split(rng.key(seed))
        state, obs = env.reset(begin)
        return (state, later), obs

    def step(state, action):
        now, later = jax.random.split(state[1])
        state, step = env.step(state[0], action, now)
        return (state, later), step

    return jax.jit(reset), jax.jit(step)


def _space(space: Space) -> gymnasium.Space:
    match space:
        case Discrete(n):
            return gymnasium.spaces.Discrete(n, dtype=np.int32)
        case Box(shape, dtype, low, high):
            low, high = (np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (low, high))
            return gymnasium.spaces.Box(low, high, dtype=np.dtype(dtype).type)
