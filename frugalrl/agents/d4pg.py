"""D4PG: DDPG whose critic is a distribution of returns of several steps (Barth-Maron et al. 2018, arXiv 1804.08617)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..memory import in_turns, replay
from ..types import Agent, Box, Network, Recipe, Space
from .actor_critic import actor as actor_network
from .actor_critic import bounds
from .actor_critic import critic as critic_network
from .ddpg import as_it_is
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


def project(support: jax.Array, probs: jax.Array, onto: jax.Array) -> jax.Array:
    """Probabilities [atoms] at `support` [atoms] as probabilities at the evenly spaced `onto` [n].

    Each atom is clipped to the ends of `onto` and shared by its two neighbours, linearly (Bellemare et al. 2017, arXiv
    1707.06887, equation 7).
    """
    apart = jnp.abs(jnp.clip(support, onto[0], onto[-1])[None, :] - onto[:, None])
    share = jnp.clip(1 - apart / (onto[1] - onto[0]), 0.0, 1.0)
    return share @ probs


def distributional(network: Network, atoms: int) -> Critic:
    """One critic whose outputs are logits of returns, evenly spaced from v_min to v_max.

    Its loss is the cross-entropy from the projected target (Barth-Maron et al. 2018, section 3 and appendix A).
    """

    def support(hyper) -> jax.Array:
        steps = jnp.arange(atoms, dtype=jnp.float32) / (atoms - 1)
        return hyper.v_min + (hyper.v_max - hyper.v_min) * steps

    def logits(params, obs, action):
        return network.apply(params, jnp.concatenate([obs, action], -1), None)

    def value(params, hyper, obs, action):
        return jnp.sum(jax.nn.softmax(logits(params, obs, action)) * support(hyper))

    def target(params, hyper, ret, next_obs, next_action):
        probs, z = jax.nn.softmax(logits(params, next_obs, next_action)), support(hyper)
        return project(ret.reward + ret.discount * z, probs, z)

    def loss(params, hyper, obs, action, target):
        outputs = logits(params, obs, action)
        cross_entropy = -jnp.sum(target * jax.nn.log_softmax(outputs))
        return cross_entropy, cross_entropy, jnp.sum(jax.nn.softmax(outputs) * support(hyper))

    return Critic(network.init, value, target, loss)


def assemble(static: Static, obs: Box, actions: Space) -> Agent:
    """The D4PG that `static` describes, for these spaces. Raises ValueError for what it cannot handle."""
    if static.atoms < 2:
        raise ValueError(f"atoms={static.atoms} make no distribution; use atoms=51")
    dims = bounds(actions)[0].size
    assert isinstance(actions, Box)
    actor = actor_network(static.hidden, dims, obs)
    critic = distributional(critic_network(static.hidden, obs, dims, static.atoms), static.atoms)
    return td3(actor, critic, actions, smooth=as_it_is)


recipe = Recipe(Static(), Hyper(), assemble, in_turns, replay, greedy, values="weight")
