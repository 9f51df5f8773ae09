"""What every peer runs: a task, settings of DQN, PPO and IMPALA, and the greedy evaluation after the clock has stopped.

The peers run in their own environments, so this file needs the standard library only, and Gymnasium to evaluate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Of an actor alone, ours as ActorQ's: new weights come this many seconds after the last, about what an update of this
# network takes on two cores; and its first steps are not counted.
PUBLISH = 0.5
WARM_UP = 200
WARM = 200  # environment steps after the first update, when all that training does has been done once


class Task(NamedTuple):
    """One seed of a peer's algorithm, or several in one program where the peer can do that."""

    algorithm: str  # by the peer's own name
    env: str
    steps: int  # of all environments of a seed together
    options: dict[str, Any]  # by the peer's own names
    hidden: tuple[int, ...] = (64, 64)  # layers of actor and critic each, ReLU where the peer leaves the choice
    num_envs: int = 1
    seed: int = 1
    seeds: int = 1
    threads: int = 1
    episodes: int = 20  # greedy ones, of the evaluation


class DQN(NamedTuple):
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
    # what Rainbow adds
    double: bool = False
    dueling: bool = False
    noisy: bool = False
    prioritized: bool = False
    n_step: int = 1
    atoms: int = 1  # 1: the mean of the returns is learned, otherwise their distribution on atoms up to
    v_max: float = 200.0  # and down to as much below 0


class PPO(NamedTuple):
    """PPO's settings; two hidden layers of 64 units in actor and critic each."""

    env: str = "CartPole-v1"
    steps: int = 200_000
    seed: int = 1
    num_envs: int = 4
    n_steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 2.5e-4  # Adam, epsilon 1e-5 where the peer leaves the choice
    anneal: bool = True  # the learning rate, linearly to 0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


class IMPALA(NamedTuple):
    """IMPALA's settings on Atari, with the deep network of Espeholt et al. 2018 (figure 3) but without its LSTM."""

    env: str = "ALE/Pong-v5"
    steps: int = 5_120
    seed: int = 1
    actors: int = 2  # processes
    num_envs: int = 32  # of each actor, and so rollouts in a batch
    n_steps: int = 20
    learning_rate: float = 6e-4  # falls to 0 linearly
    gamma: float = 0.99
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 40.0


def clock(task: Task, starts: int) -> tuple[Callable[[int], None], dict[str, float]]:
    """A function to call with the steps done so far, and what it keeps: `warm_steps`, and `warm_at` since the epoch.

    It keeps the first call with at least `WARM` steps more than those before the first update, `starts`, or with half
    of the task's if those are fewer.
    """
    seen: dict[str, float] = {}
    enough = min(starts + WARM, task.steps // 2)

    def mark(steps: int) -> None:
        if not seen and steps >= enough:
            seen.update(warm_steps=steps, warm_at=time.time())

    return mark, seen


def greedy_returns(env_id: str, act: Callable[[Any], Any], episodes: int = 20, seed: int = 10_000) -> list[float]:
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
