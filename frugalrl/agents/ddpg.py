"""DDPG: a deterministic actor and one critic (Lillicrap et al. 2015, arXiv 1509.02971).

TD3 without its three repairs. Exploration is normal noise; the paper's is correlated in time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..memory import in_turns, replay
from ..types import Agent, Box, Recipe, Space
from .actor_critic import actor as actor_network
from .actor_critic import bounds
from .actor_critic import critic as critic_network
from .descent import PLAIN, Numerics
from .td3 import Static, greedy, least, td3


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 1e-3
    gamma: Any = 0.99
    tau: Any = 0.005  # how far the targets move at each update of the actor
    policy_delay: Any = 1  # updates of the critic for each update of the actor and of the targets
    action_noise: Any = 0.1  # standard deviation of exploration, in half ranges of the action


def as_it_is(hyper, action, key):
    """A target action without noise."""
    return action


def assemble(static: Static, obs: Box, actions: Space, numerics: Numerics = PLAIN) -> Agent:
    """The DDPG that `static` describes, for these spaces. Raises ValueError for spaces it cannot handle."""
    dims = bounds(actions)[0].size
    assert isinstance(actions, Box)
    actor = actor_network(static.hidden, dims, obs)
    return td3(actor, least(critic_network(static.hidden, obs, dims), 1), actions, smooth=as_it_is, numerics=numerics)


recipe = Recipe(Static(), Hyper(), assemble, in_turns, replay, greedy, values="weight")
