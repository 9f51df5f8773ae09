"""DQN: Q-learning with a replay memory and a target network (Mnih et al. 2015).

The walk of an observation to a gradient, which began in `envs/`, ends in `grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..distributions import EpsilonGreedy, epsilon_greedy
from ..losses import huber, n_step, squared
from ..memory import in_turns, replay
from ..networks import Dense, torso
from ..networks import network as build_network
from ..types import (
    Agent,
    Batch,
    Box,
    Discrete,
    Info,
    Network,
    Policy,
    Recipe,
    Space,
)
from .descent import descend, follow, shrunk
from .schedules import epsilon, target_due


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    hidden: tuple[int, ...] = (64, 64)  # widths of the layers
    network: str = "auto"  # or "mlp", "minatar", "small", "nature", "impala"
    batch_size: int = 128
    buffer_size: int = 100_000  # environment steps kept
    learning_starts: int = 1_000  # environment steps before the first update
    train_freq: int = 4  # environment steps between rounds of updates
    gradient_steps: int = 1  # updates in a round
    num_envs: int = 4  # environments side by side, of each actor process if there are any
    n_step: int = 1
    double: bool = False
    loss: str = "huber"  # or "mse"
    optimizer: str = "adam"  # or "rmsprop": centred, as Mnih et al. 2015 have it


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 1e-3
    gamma: Any = 0.99
    tau: Any = 1.0  # how far the target network moves at each target update
    target_update_interval: Any = 1_000  # environment steps between two target updates
    max_grad_norm: Any = 10.0
    exploration_initial_eps: Any = 1.0
    exploration_final_eps: Any = 0.05
    exploration_fraction: Any = 0.2  # of all training steps, over which epsilon falls linearly
    total_steps: Any = 100_000  # environment steps of the training run
    steps_per_update: Any = 4.0  # environment steps for each learner update


class State(NamedTuple):
    params: Any
    target: Any
    optimizer: Any
    hyper: Hyper
    version: Any  # int32, learner updates so far


def dqn(
    network: Network,
    *,
    double: bool = False,
    loss: Callable = huber,
    optimizer: optax.GradientTransformation | None = None,
) -> Agent:
    """DQN on `network`, whose outputs are one value for each action.

    `double` picks the bootstrap action by the online network (van Hasselt et al. 2016, equation 4); `loss` is taken of
    the temporal-difference error; `optimizer` is an optax direction, without its learning rate (default Adam, Kingma
    and Ba 2015). The number of steps in a return is the window of the batch.
    """
    tx = optax.scale_by_adam() if optimizer is None else optimizer

    def init(key, hyper: Hyper) -> State:
        params = network.init(key)
        hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
        return State(params, params, tx.init(params), hyper, jnp.zeros((), jnp.int32))

    def policy(state: State) -> Policy:
        return Policy(state.params, {"epsilon": epsilon(state)})

    def dist(policy: Policy, obs, key=None) -> EpsilonGreedy:
        return epsilon_greedy(network.apply(policy.params, obs, key), policy.knobs)

    def grad(state: State, batch: Batch, key) -> tuple[Any, Info]:
        h, data = state.hyper, batch.data
        key_obs, key_next, key_target = jax.random.split(key, 3)
        ret = jax.vmap(n_step, (0, 0, 0, None))(data.reward, data.terminated, data.truncated, h.gamma)
        obs, action = data.obs[:, 0], data.action[:, 0]
        next_obs = jax.vmap(lambda x, i: x[i])(data.next_obs, ret.last)

        def values(params, obs, key):
            return jax.vmap(network.apply, (None, 0, None))(params, obs, key)

        def taken(q, action):
            return jnp.take_along_axis(q, action[:, None], -1)[:, 0]

        q_target = values(state.target, next_obs, key_target)
        if double:
            bootstrap = taken(q_target, jnp.argmax(values(state.params, next_obs, key_next), -1))
        else:
            bootstrap = jnp.max(q_target, -1)
        target = ret.reward + ret.discount * bootstrap

        def objective(params):
            q = taken(values(params, obs, key_obs), action)
            error = target - q
            return jnp.mean(batch.weight * loss(error)), (error, q)

        (value, (error, q)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        return grads, Info({"loss": value, "q": jnp.mean(q)}, jnp.abs(error))

    def apply(state: State, grads) -> State:
        h = state.hyper
        grads = shrunk(grads, h.max_grad_norm)
        params, opt = descend(tx, state.params, state.optimizer, grads, h.learning_rate)
        version = state.version + 1
        target = follow(state.target, params, jnp.where(target_due(state, version), h.tau, 0.0))
        return State(params, target, opt, h, version)

    return Agent(init, policy, epsilon_greedy, dist, grad, apply, network, ratio_from=1)


LOSSES = {"huber": huber, "mse": squared}
OPTIMIZERS = {
    "adam": optax.scale_by_adam,
    "rmsprop": lambda: optax.scale_by_stddev(decay=0.95, eps=0.01),
}


def greedy(actions: Space) -> dict[str, Any]:
    """The knobs of a policy that acts as well as it can."""
    return {"epsilon": 0.0}


def assemble(static: Static, obs: Box, actions: Space) -> Agent:
    """The DQN that `static` describes, for these spaces. Raises ValueError for a choice that does not exist."""
    if not isinstance(actions, Discrete):
        raise ValueError("dqn chooses among discrete actions")
    for name, table in (("loss", LOSSES), ("optimizer", OPTIMIZERS)):
        if getattr(static, name) not in table:
            raise ValueError(f"{name}={getattr(static, name)!r} does not exist; there are: {', '.join(table)}")
    layers = (*torso(static.network, static.hidden, obs), Dense(actions.n, relu=False, gain=1.0))
    net = build_network(layers, obs)
    return dqn(net, double=static.double, loss=LOSSES[static.loss], optimizer=OPTIMIZERS[static.optimizer]())


recipe = Recipe(Static(), Hyper(), assemble, in_turns, replay, greedy, values="weight")
