"""A3C: actor-critic of actor-learners that share parameters and do not wait for each other; and the one-step Q,
one-step Sarsa and n-step Q of the same paper (Mnih et al. 2016, arXiv 1602.01783).

An agent here is that of one actor-learner, whose batch is a rollout of its own; which of them acts and learns when is
the runtime's (`runtime/actor_learner.py`). Differences to the paper: gradients are of the mean loss over a rollout, not
the sum, so that the learning rate does not depend on `n_steps` and `num_envs`; they are applied whole, one after the
other, where threads without locks may tear them; an actor-learner may step several environments side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..losses import lambda_return
from ..memory import by_rollouts, rollouts
from ..networks import Dense, torso
from ..networks import network as build_network
from ..types import Agent, Box, Cadence, Corrector, Discrete, Memory, Policy, Recipe, Space, Transition
from . import ppo
from .descent import PLAIN, Numerics, by_width
from .pqn import rollout_q


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    algorithm: str = "actor-critic"  # or "one-step-q", "one-step-sarsa", "n-step-q"
    hidden: tuple[int, ...] = (64, 64)  # widths of the layers, of actor and critic each
    # or "mlp", "minatar", "planes", "small", "nature", "impala"; on pixels actor and critic share it
    network: str = "auto"
    workers: int = 2  # actor-learners: processes, or copies that take turns in the compiled runtime
    base_width: int = 0  # layers with more inputs learn at base_width / inputs of the learning rate; 0: all alike
    num_envs: int = 4  # of each actor-learner
    n_steps: int = 5  # of each environment in a rollout
    optimizer: str = "rmsprop"  # or "adam"
    draw_eps: bool = True  # of action values: each has a final epsilon of its own, or else exploration_final_eps
    normalize_obs: bool = False  # of actor-critic only
    normalize_reward: bool = False  # of actor-critic only
    squash: bool = False  # of actor-critic with continuous actions: they go through tanh


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 7e-4
    anneal_lr: Any = 1.0  # the share of the learning rate that is gone at the end of training, linearly
    gamma: Any = 0.99
    max_grad_norm: Any = 0.5
    gae_lambda: Any = 1.0  # of actor-critic: 1 is the n-step return
    ent_coef: Any = 0.01  # of actor-critic
    vf_coef: Any = 0.5  # of actor-critic
    clip_range: Any = 0.2  # of actor-critic: beyond it clip_fraction counts
    log_std_init: Any = 0.0  # of actor-critic with continuous actions
    bounds_coef: Any = 0.0  # of the same, of the squared distance of a mean beyond its bounds
    q_lambda: Any = 1.0  # of n-step-q: 1 is the n-step return
    exploration_initial_eps: Any = 1.0  # of action values, as all below
    exploration_final_eps: Any = 0.05  # without draw_eps
    exploration_fraction: Any = 0.2  # of all training steps, over which epsilon falls linearly
    target_update_interval: Any = 1_000  # environment steps between two copies; the paper has 40,000 frames of Atari
    total_steps: Any = 100_000  # environment steps of the training run
    steps_per_update: Any = 1.0  # environment steps for each learner update


ACTOR_CRITIC = "actor-critic"
# of action values: what the next observation is worth, and the share of q_lambda that is taken
VALUES = {"one-step-q": ("max", 0.0), "one-step-sarsa": ("sarsa", 0.0), "n-step-q": ("max", 1.0)}
FINAL_EPS, CHANCES = (0.1, 0.01, 0.5), (0.4, 0.3, 0.3)  # Mnih et al. 2016, section 5.1


def exploring(agent: Agent, workers: int, *, draw: bool = True) -> Agent:
    """The agent of which each actor-learner explores in its own way.

    Its final epsilon is drawn from 0.1, 0.01 and 0.5 with chances 0.4, 0.3 and 0.3 when the run begins, and stays; with
    `draw` False it is `exploration_final_eps` for all. The state that they share holds the final epsilons of all,
    [workers], and its own policy has their mean.
    """

    def ending(state: Any, final: Any) -> Any:
        return state._replace(hyper=state.hyper._replace(exploration_final_eps=final))

    def init(key, hyper) -> Any:
        key_agent, key_eps = jax.random.split(key)
        state = agent.init(key_agent, hyper)
        if not draw:
            return ending(state, jnp.full(workers, state.hyper.exploration_final_eps))
        drawn = jax.random.choice(key_eps, jnp.array(FINAL_EPS), (workers,), p=jnp.array(CHANCES))
        return ending(state, drawn)

    def mean(state: Any) -> Any:
        return ending(state, jnp.mean(state.hyper.exploration_final_eps))  # of one actor-learner it is its own

    def policy(state: Any) -> Policy:
        return agent.policy(mean(state))

    def prepare(state: Any, rollout: Transition) -> Any:
        return agent.prepare(mean(state), rollout)

    def own(state: Any, worker: Any) -> Any:
        return ending(state, state.hyper.exploration_final_eps[worker])

    return agent._replace(init=init, policy=policy, prepare=prepare, own=own)


def assemble(
    static: Static, obs: Box, actions: Space, corrector: Corrector = lambda_return, numerics: Numerics = PLAIN
) -> Agent:
    """The agent of one actor-learner that `static` describes. Raises ValueError for a choice that does not exist."""
    if static.algorithm == ACTOR_CRITIC:
        return ppo.assembled(
            static._replace(num_envs=static.workers * static.num_envs), obs, actions,
            surrogate=None, corrector=corrector, normalize_advantage=False, numerics=numerics,
        )  # fmt: skip
    bootstrap, share = ppo.choice("algorithm", static.algorithm, {ACTOR_CRITIC: None, **VALUES})
    if not isinstance(actions, Discrete):
        raise ValueError(f"algorithm={static.algorithm} chooses among discrete actions; use algorithm={ACTOR_CRITIC}")
    for name in ("normalize_obs", "normalize_reward", "squash"):
        if getattr(static, name):
            raise ValueError(f"{name} is of algorithm={ACTOR_CRITIC}; leave it out")
    layers = (*torso(static.network, static.hidden, obs), Dense(actions.n, relu=False, gain=1.0))
    optimizer = by_width(ppo.choice("optimizer", static.optimizer, ppo.OPTIMIZERS)(), static.base_width)
    agent = rollout_q(
        build_network(layers, obs), corrector=corrector, bootstrap=bootstrap, target=True, optimizer=optimizer,
        numerics=numerics,
    )  # fmt: skip

    def init(key, hyper: Hyper) -> Any:
        return agent.init(key, hyper._replace(q_lambda=share * hyper.q_lambda))

    return exploring(agent._replace(init=init), static.workers, draw=static.draw_eps)


def cadence(static: Static) -> Cadence:
    """Each rollout of an actor-learner is followed by one update."""
    return by_rollouts(static, 1, waits=False)._replace(learners=static.workers)


def memory(static: Static, example: Transition, **shape: Any) -> Memory:
    """Only the rollout that has just come."""
    return rollouts(example, alone=True, **shape)


def greedy(actions: Space) -> dict[str, Any]:
    """The knobs of a policy that acts as well as it can, whatever its algorithm."""
    return {"epsilon": 0.0} | ppo.greedy(actions)


def values(static: Static) -> str:
    """What the Correctors are of."""
    return "state" if static.algorithm == ACTOR_CRITIC else "action"


recipe = Recipe(Static(), Hyper(), assemble, cadence, memory, greedy, values=values)
