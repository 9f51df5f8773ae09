"""A3C and its three value-based companions, for actor-learners (Mnih et al. 2016, arXiv 1602.01783)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..losses import lambda_return
from ..memory import rollouts
from ..types import Agent, Box, Cadence, Corrector, Memory, Recipe, Space, Transition
from .ppo import OPTIMIZERS, _assembled, _choice, _greedy


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    hidden: tuple[int, ...] = (64, 64)
    network: str = "auto"
    workers: int = 2  # actor-learners
    num_envs: int = 4  # of each actor-learner
    n_steps: int = 5
    optimizer: str = "rmsprop"
    normalize_obs: bool = False
    normalize_reward: bool = False


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 7e-4
    anneal_lr: Any = 1.0
    gamma: Any = 0.99
    gae_lambda: Any = 1.0
    clip_range: Any = 0.2
    ent_coef: Any = 0.01
    vf_coef: Any = 0.5
    max_grad_norm: Any = 0.5
    total_steps: Any = 100_000
    steps_per_update: Any = 1.0


def assemble(static: Static, obs: Box, actions: Space, corrector: Corrector = lambda_return) -> Agent:
    return _assembled(
        static._replace(num_envs=static.workers * static.num_envs), obs, actions,
        surrogate=None, corrector=corrector, normalize_advantage=False,
        optimizer=_choice("optimizer", static.optimizer, OPTIMIZERS)(),
    )  # fmt: skip


def cadence(static: Static) -> Cadence:
    return Cadence(static.num_envs * static.n_steps, 1, rollout=static.n_steps, learners=static.workers)


def memory(static: Static, example: Transition, **shape: Any) -> Memory:
    return rollouts(example, alone=True, **shape)


recipe = Recipe(Static(), Hyper(), assemble, cadence, memory, _greedy)
