"""Action values from rollouts: PQN, and the one-step Q, one-step Sarsa and n-step Q of asynchronous learners.

They differ in what the next observation is worth (`bootstrap`), in lambda and in whether a target network judges it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..distributions import EpsilonGreedy, epsilon_greedy
from ..losses import before_and_after, lambda_return, squared
from ..memory import by_rollouts, in_epochs
from ..networks import Dense, at_once, normalised, torso
from ..networks import network as build_network
from ..types import Agent, Batch, Box, Corrector, Discrete, Info, Network, Policy, Recipe, Space, Trace, Transition
from .descent import PLAIN, Numerics, in_parts
from .dqn import greedy
from .schedules import epsilon, learning_rate, target_due

BOOTSTRAPS = ("max", "mean", "sarsa")


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    hidden: tuple[int, ...] = (64, 64)  # widths of the layers
    network: str = "auto"  # or "mlp", "minatar", "planes", "small", "nature", "impala"
    layer_norm: bool = True  # before each ReLU: what stands in for a target network
    num_envs: int = 32  # of all actors together
    n_steps: int = 32  # of each environment in a rollout
    n_epochs: int = 2
    num_minibatches: int = 8


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 5e-4
    anneal_lr: Any = 1.0  # the share of the learning rate that is gone at the end of training, linearly
    gamma: Any = 0.99
    q_lambda: Any = 0.65
    max_grad_norm: Any = 10.0
    exploration_initial_eps: Any = 1.0
    exploration_final_eps: Any = 0.05
    exploration_fraction: Any = 0.1  # of all training steps, over which epsilon falls linearly
    total_steps: Any = 100_000  # environment steps of the training run
    steps_per_update: Any = 64.0  # environment steps for each learner update


class State(NamedTuple):
    params: Any
    target: Any  # as `params`; () without a target network
    optimizer: Any
    hyper: Any
    version: Any  # int32, learner updates so far


def rollout_q(
    network: Network,
    *,
    corrector: Corrector = lambda_return,
    bootstrap: str = "max",
    target: bool = False,
    loss: Callable = squared,
    optimizer: optax.GradientTransformation | None = None,
    reduce: Callable = jnp.mean,
    numerics: Numerics = PLAIN,
) -> Agent:
    """Action values on `network`, learned from rollouts whose targets `corrector` makes, once for all updates.

    `bootstrap` is what the next observation is worth, and whose values are learned: "max" those of the greedy policy
    (Q-learning; with `lambda_return` Peng's Q(lambda), as in Gallici et al. 2024, arXiv 2407.04811), "mean" those of
    the epsilon-greedy policy of now (expected Sarsa). Ratios and probabilities are those of the same policy, so that
    Retrace and tree-backup learn its values too. "sarsa" takes the action really taken next, and the mean where none is
    known: at the end of a rollout and where an episode was truncated; no Corrector fits that but `lambda_return`.

    With a `target` network that one judges the rollout, and its greedy action is what greedy means; it becomes a copy
    of the learner's once in `target_update_interval` environment steps (Mnih et al. 2016, algorithms 1 and 2: lambda 0
    is one step, lambda 1 as many as the rollout has). `loss` is taken of the error of each step; `reduce` makes a
    number of those of a batch; `optimizer` is an optax direction, without its learning rate (default RAdam, Liu et al.
    2020); `numerics` is the precision of the learner.

    The hyper-parameters read are learning_rate, anneal_lr, gamma, q_lambda, max_grad_norm, the three of exploration,
    total_steps, steps_per_update and, with a target network, target_update_interval; a record may have others. Raises
    ValueError for a bootstrap that does not exist or that the Corrector does not fit.
    """
    if bootstrap not in BOOTSTRAPS:
        raise ValueError(f"bootstrap={bootstrap!r} does not exist; there are: {', '.join(BOOTSTRAPS)}")
    if bootstrap == "sarsa" and corrector is not lambda_return:
        raise ValueError("sarsa learns from the actions taken and cannot be corrected; use --correct none")
    tx = optax.scale_by_radam() if optimizer is None else optimizer

    def init(key, hyper) -> State:
        params = numerics.store(network.init(key))
        hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
        judge = numerics.target(params) if target else ()
        return State(params, judge, numerics.init(tx, params), hyper, jnp.zeros((), jnp.int32))

    def policy(state: State) -> Policy:
        return Policy(numerics.full(state.params), {"epsilon": epsilon(state)})

    def dist(policy: Policy, obs, key=None) -> EpsilonGreedy:
        return epsilon_greedy(network.apply(policy.params, obs, key), policy.knobs)

    def prepare(state: State, rollout: Transition) -> jax.Array:
        judge = numerics.weights(state.target if target else state.params)
        own_epsilon = jnp.float32(0) if bootstrap == "max" else epsilon(state)
        now, then = (
            EpsilonGreedy(values, own_epsilon)
            for values in before_and_after(
                lambda params, obs: network.apply(params, obs, None), judge, rollout.obs, rollout.next_obs,
                rollout.truncated, at_once(network),
            )
        )  # fmt: skip
        ended = rollout.terminated | rollout.truncated
        worth = jnp.sum(then.probs() * then.values, -1)  # of the greedy policy: its largest
        if bootstrap == "sarsa":
            goes_on = jnp.logical_not(ended).at[-1].set(False)
            worth = jnp.where(goes_on, _taken(then.values, jnp.roll(rollout.action, -1)), worth)
        trace = Trace(
            reward=rollout.reward,
            discount=jnp.where(rollout.terminated, 0.0, state.hyper.gamma),
            ended=ended,
            value=_taken(now.values, rollout.action),
            bootstrap=worth,
            log_ratio=now.log_prob(rollout.action) - rollout.log_prob,
            prob=_taken(now.probs(), rollout.action),
        )
        return corrector(trace, state.hyper.q_lambda).target

    def grad(state: State, batch: Batch, key) -> tuple[Any, Info]:
        def objective(params, part):
            obs, action, target, weight = part
            values = jax.vmap(jax.vmap(network.apply, (None, 0, None)), (None, 0, None))(params, obs, None)
            q = _taken(values, action)
            return share * jnp.sum(weight * loss(target - q)), q

        weight = jnp.broadcast_to(batch.weight[:, None], batch.extra.shape)
        share = reduce(jnp.ones_like(weight)) / weight.size  # of a step's loss in the loss: 1 of a sum
        steps = (batch.data.obs, batch.data.action, batch.extra, weight)
        (value, q), grads = numerics.gradient(
            objective, numerics.weights(state.params), state.optimizer, in_parts(steps, at_once(network))
        )
        error = batch.extra - q
        return grads, Info({"loss": value, "q": jnp.mean(q)}, jnp.mean(jnp.abs(error), -1))

    def apply(state: State, grads) -> State:
        params, moments = numerics.descend(
            tx, state.params, state.optimizer, grads, learning_rate(state), state.hyper.max_grad_norm
        )
        version, judge = state.version + 1, state.target
        if target:
            judge = numerics.follow(judge, params, jnp.where(target_due(state, version), 1.0, 0.0))
        return State(params, judge, moments, state.hyper, version)

    return Agent(init, policy, epsilon_greedy, dist, grad, apply, network, ratio_from=1, prepare=prepare)


def _taken(values: jax.Array, action: jax.Array) -> jax.Array:
    """The value [...] of each action, of `values` [..., actions]."""
    return jnp.take_along_axis(values, action[..., None], -1)[..., 0]


def assemble(
    static: Static, obs: Box, actions: Space, corrector: Corrector = lambda_return, numerics: Numerics = PLAIN
) -> Agent:
    """The PQN that `static` describes, for these spaces. Raises ValueError for a choice that does not exist."""
    if not isinstance(actions, Discrete):
        raise ValueError("pqn chooses among discrete actions")
    layers = torso(static.network, static.hidden, obs)
    layers = normalised(layers) if static.layer_norm else layers
    network = build_network((*layers, Dense(actions.n, relu=False, gain=1.0)), obs)
    return rollout_q(network, corrector=corrector, numerics=numerics)


recipe = Recipe(
    Static(),
    Hyper(),
    assemble,
    lambda s: by_rollouts(s, s.n_epochs * s.num_minibatches),
    in_epochs,
    greedy,
    values="action",
)
