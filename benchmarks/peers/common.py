"""What every peer runs, as a task or as DQN's settings, and the greedy evaluation after the clock has stopped.

The peers run in their own environments, so this file needs the standard library only, and Gymnasium to evaluate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """DQN's settings; counts are environment steps unless said otherwise."""

    env: str = "CartPole-v1"
    steps: int = 100_000
    seed: int = 1
    width: int = 64  # units in each of the two hidden ReLU layers
    batch: int = 128
    update_every: int = 4  # environment steps per gradient update
    replay: int = 100_000
    learning_starts: int = 1_000
    learning_rate: float = 2.5e-4  # Adam
    gamma: float = 0.99
    target_every: int = 500  # environment steps between hard copies to the target network
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    # Share of the steps over which epsilon falls linearly. It matters for speed: a random action costs no forward pass.
    exploration_fraction: float = 0.5


class Task(NamedTuple):
    """One seed of a peer's algorithm."""

    algorithm: str  # by the peer's own name
    env: str
    steps: int  # of all environments together
    options: dict[str, Any]  # by the peer's own names
    hidden: tuple[int, ...] = (64, 64)  # ReLU layers, of actor and critic each
    num_envs: int = 1
    seed: int = 1
    threads: int = 1
    episodes: int = 20  # greedy ones, of the evaluation


def arguments(settings: Settings) -> list[str]:
    """`settings` as command-line flags, in the form `parser` reads."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings._asdict().items()]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with one flag for each field of `Settings`, with its default and type."""
    result = argparse.ArgumentParser(description=description)
    for name, default in Settings()._asdict().items():
        result.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return result


def settings_from(parsed: argparse.Namespace) -> Settings:
    """The `Settings` in what `parser` parsed; other flags are left alone."""
    return Settings(**{name: getattr(parsed, name) for name in Settings._fields})


def greedy_returns(env_id: str, act: Callable[[Any], int], episodes: int = 20, seed: int = 10_000) -> list[float]:
    """Undiscounted returns of `episodes` episodes; `act` maps one observation, float32 [features], to an action."""
    import gymnasium

    env = gymnasium.make(env_id)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return returns
