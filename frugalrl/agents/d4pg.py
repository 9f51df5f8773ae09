"""D4PG: DDPG whose critic is a distribution of returns of several steps (Barth-Maron et al. 2018, arXiv 1804.08617)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from ..memory import in_turns, replay
from ..types import Agent, Box, Network, Recipe, Space
from .actor_critic import actor as actor_network
from .actor_critic import bounds
from .actor_critic import critic as critic_network
from .ddpg import as_it_is
from .descent import PLAIN, Numerics
from .returns import categorical, expectation
from .td3 import Critic, greedy, td3


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    hidden: tuple[int, ...] = (256, 256)  # widths of the layers, of the actor and of the critic
    batch_size: int = 256
    buffer_size: int = 1_000_000  # environment steps kept
    learning_starts: int = 100  # environment steps, of random actions, before the first update
    train_freq: int = 1  # environment steps between rounds of updates
    gradient_steps: int = 1  # updates in a round
    num_envs: int = 1  # environments side by side, of each actor process if there are any
    n_step: int = 5
    atoms: int = 51  # of the distribution


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 1e-3
    gamma: Any = 0.99
    tau: Any = 0.005  # how far the targets move at each update of the actor
    policy_delay: Any = 1  # updates of the critic for each update of the actor and of the targets
    action_noise: Any = 0.1  # standard deviation of exploration, in half ranges of the action
    v_min: Any = -100.0  # the least return the critic can tell
    v_max: Any = 100.0  # the most


def distributional(network: Network, atoms: int) -> Critic:
    """One critic whose outputs are logits of returns, evenly spaced from v_min to v_max.

    Its loss is the cross-entropy from the projected target (Barth-Maron et al. 2018, section 3 and appendix A).
    """
    returns = categorical(atoms)

    def logits(params, obs, action):
        return network.apply(params, jnp.concatenate([obs, action], -1), None)

    def value(params, hyper, obs, action):
        return expectation(logits(params, obs, action), returns.at(hyper, None))

    def target(params, hyper, ret, next_obs, next_action):
        return returns.target(ret.reward, ret.discount, logits(params, next_obs, next_action), returns.at(hyper, None))

    def loss(params, hyper, obs, action, target):
        return returns.loss(logits(params, obs, action), returns.at(hyper, None), target)

    return Critic(network.init, value, target, loss)


def assemble(static: Static, obs: Box, actions: Space, numerics: Numerics = PLAIN) -> Agent:
    """The D4PG that `static` describes, for these spaces. Raises ValueError for what it cannot handle."""
    if static.atoms < 2:
        raise ValueError(f"atoms={static.atoms} make no distribution; use atoms=51")
    dims = bounds(actions)[0].size
    assert isinstance(actions, Box)
    actor = actor_network(static.hidden, dims, obs)
    critic = distributional(critic_network(static.hidden, obs, dims, static.atoms), static.atoms)
    return td3(actor, critic, actions, smooth=as_it_is, numerics=numerics)


recipe = Recipe(Static(), Hyper(), assemble, in_turns, replay, greedy, values="weight")
