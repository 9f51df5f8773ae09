"""Environments that tests need: each shows where its steps come from, or misbehaves in one way.

They are named "fake_env:Walk-v0" and so on, and an actor process imports this file to find them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

IN_ACTOR = getattr(sys.modules["__main__"].__spec__, "name", None) == "frugalrl.runtime.actor"


class Walk(gymnasium.Env):
    """Observations tell instance, episode and time; episodes terminate after 5 steps or are cut off after 7, by turns.

    The reward is the time plus a tenth of the action.
    """

    observation_space = gymnasium.spaces.Box(0.0, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.episode = seconds, -1
        self.instance = int.from_bytes(os.urandom(3), "little") / 2**24  # exact in float32

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        time.sleep(self.seconds)
        self.time += 1
        terminated = self.episode % 2 == 0 and self.time == 5
        return self._obs(), self.time + 0.1 * float(action), terminated, self.time == 7, {}

    def _obs(self):
        return np.array([self.instance, self.episode, self.time], np.float32)


class Chatty(Walk):
    """Writes to standard output, with print and below Python."""

    def step(self, action):
        print("an environment that talks")
        os.write(1, b"and talks\n")
        return super().step(action)


class NoJax(Walk):
    """Refuses to be stepped by an actor process that has imported JAX."""

    def step(self, action):
        assert not (IN_ACTOR and "jax" in sys.modules), "an actor has imported JAX"
        return super().step(action)


class BrokenReset(Walk):
    def reset(self, *, seed=None, options=None):
        raise ValueError("no game\nto play")


class BrokenStep(Walk):
    def step(self, action):
        raise ValueError("the wheel came off")


class Flagged(Walk):
    """Breaks in actor processes as soon as the file $FAKE_ENV_FLAG is there; a step elsewhere puts it there."""

    def step(self, action):
        flag = Path(os.environ["FAKE_ENV_FLAG"])
        if IN_ACTOR and flag.exists():
            raise ValueError("the flag is up")
        if not IN_ACTOR and flag.parent.exists():
            flag.touch()
        return super().step(action)


class BrokenOutside(Walk):
    """Trains but cannot be evaluated."""

    def step(self, action):
        if not IN_ACTOR:
            raise ValueError("nobody may look")
        return super().step(action)


class Priceless(Walk):
    """From its third episode on, rewards are not numbers."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.nan if self.episode > 2 else reward, *rest


class Blind(Walk):
    """From its third episode on, observations are not numbers."""

    def _obs(self):
        return super()._obs() * (np.nan if self.episode > 2 else 1)


class Shapeless(Walk):
    """Its steps show more than its observation space says."""

    def step(self, action):
        obs, *rest = super().step(action)
        return np.append(obs, obs), *rest


class Stuck(Walk):
    def step(self, action):
        time.sleep(60)
        return super().step(action)


class Spot(gymnasium.Env):
    """A picture [16, 16, 3] with a light somewhere: the action is to tell where, from -1 (left) to 1 (right).

    It moves by itself, and episodes are only ever cut off, after 10 steps.
    """

    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._draw(), {}

    def step(self, action):
        reward = 1 - (float(action[0]) - (self.column - 7.5) / 7.5) ** 2
        self.time += 1
        return self._draw(), reward, False, self.time == 10, {}

    def _draw(self):
        self.column = int(self.np_random.integers(16))
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[4:12, self.column] = 255
        return picture


class Endless(Walk):
    """Nothing ends an episode."""

    def step(self, action):
        return *super().step(action)[:2], False, False, {}


def cut_off() -> gymnasium.Env:
    """A function that makes an environment, within a wrapper."""
    return gymnasium.wrappers.TimeLimit(Endless(), 4)


def unsaid():
    return Endless()


for made in (
    Walk,
    Chatty,
    NoJax,
    BrokenReset,
    BrokenStep,
    Flagged,
    BrokenOutside,
    Priceless,
    Blind,
    Shapeless,
    Stuck,
    Spot,
):
    gymnasium.register(f"{made.__name__}-v0", entry_point=made, disable_env_checker=True)
gymnasium.register("Slow-v0", entry_point=Walk, kwargs={"seconds": 2e-3}, disable_env_checker=True)
