"""Environments that can be brought back to where they were: by playing the episode under way once more.

No two environments keep their state in the same place, and of some nobody can tell where all of it is. But each episode
that begins with a seed of its own, in an environment made anew, follows from that seed and its actions. So these are
its state, whatever the environment and its wrappers: time limits, frame stacks and returns come back with the rest.
It does not import JAX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

TRIAL = 64  # steps that `repeats` compares


class Past(NamedTuple):
    """The episode under way in one environment: plain numbers, enough to come back to where it is."""

    episode: int = 0  # its number
    actions: Any = ()  # so far, [steps, ...] of one dtype
    seen: str = ""  # the digest of the observation that they led to

    def after(self, actions: np.ndarray, ended: np.ndarray, obs: np.ndarray) -> Past:
        """After more `actions` [steps, ...], some of which `ended` an episode; `obs` is what the last one led to."""
        begun = np.flatnonzero(ended)[-1] + 1 if ended.any() else 0
        new = actions[begun:].copy()
        if not ended.any() and len(self.actions):
            new = np.concatenate([np.asarray(self.actions, new.dtype), new])
        return Past(self.episode + int(ended.sum()), new, digest(obs) if len(new) else "")


def digest(obs: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(obs).tobytes()).hexdigest()


def saved(past: Past) -> list:
    """A Past as JSON has it; numbers of 32 bits are kept exactly."""
    return [past.episode, np.asarray(past.actions).tolist(), past.seen]


def restored(told: list, dtype: str) -> Past:
    """What `saved` was given, with actions of `dtype`."""
    episode, actions, seen = told
    return Past(episode, np.array(actions, dtype), seen)


class Repeated(gymnasium.Wrapper):
    """An environment whose episodes follow from their numbers and their actions, and that begins where `past` ended.

    It is made anew for each episode, as some carry over a reset what no seed tells. Whatever seeds `reset` is given,
    that of an episode is made of `seed`, `lane` and its number. `ret` and `length` are what had come of the past.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], seed: tuple[int, ...], lane: int, past: Past):
        super().__init__(make())
        self.make, self.entropy, self.lane, self.past = make, seed, lane, past
        self.number, self.begun = past.episode, False
        self.ret, self.length = 0.0, len(past.actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if self.begun:
            self.env.close()
            self.env, self.number = self.make(), self.number + 1
            return self.env.reset(seed=self._seed())
        self.begun = True
        obs, info = self.env.reset(seed=self._seed())
        for action in self.past.actions:
            obs, reward, _, _, info = self.env.step(action)
            self.ret += float(reward)
        return obs, info

    def _seed(self) -> int:
        drawn = np.random.SeedSequence(self.entropy, spawn_key=(0, self.lane, self.number)).generate_state(1)
        return int(drawn[0] >> 1)


def draws(seed: tuple[int, ...], unroll: int) -> np.random.Generator:
    """What an actor draws in an unroll: of its number alone, so that there is nothing to save."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, unroll)))


def returned(envs: Sequence[Any], obs: np.ndarray) -> tuple[list[float], list[int]]:
    """The returns and lengths so far of the episodes under way in Repeated environments, which show `obs` [envs, ...].

    Raises RuntimeError if they have not come back to where they were.
    """
    for env, one in zip(envs, obs, strict=True):
        if len(env.past.actions) and digest(one) != env.past.seen:
            raise RuntimeError(
                f"the environment did not repeat itself: {env.length} steps played again led to another observation "
                "than in the run, which cannot go on exactly"
            )
    return [env.ret for env in envs], [env.length for env in envs]


def repeats(make: Callable[[], gymnasium.Env]) -> bool:
    """Whether an environment does the same for the same seed and actions, in a trial of TRIAL steps.

    To raise is to do something, too: what there is to say about that is said where it is stepped in earnest.
    """

    def trial() -> list:
        found: list = []
        try:
            env = Repeated(make, (0,), 0, Past())
            actions = env.action_space
            actions.seed(0)
            found.append(np.asarray(env.reset()[0]).tobytes())
            for _ in range(TRIAL):
                obs, reward, terminated, truncated, _ = env.step(actions.sample())
                found.append((np.asarray(obs).tobytes(), repr(float(reward)), bool(terminated), bool(truncated)))
                if terminated or truncated:
                    found.append(np.asarray(env.reset()[0]).tobytes())
            env.close()
        except Exception as error:
            found.append(type(error))
        return found

    return trial() == trial()
