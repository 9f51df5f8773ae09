"""TD3: a deterministic actor, twin critics, smoothed targets, delayed actor (Fujimoto et al. 2018, arXiv 1802.09477).

`ddpg.py` and `d4pg.py` are this agent with other parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..branches import if_any
from ..distributions import ClippedNormal, clipped_normal
from ..losses import NStep, n_step, squared
from ..memory import in_turns, replay
from ..types import Agent, Batch, Box, Info, Network, Policy, Recipe, Space
from .actor_critic import actor as actor_network
from .actor_critic import bounds, ensemble, unit
from .actor_critic import critic as critic_network
from .descent import PLAIN, Numerics


class Static(NamedTuple):
    """Numbers and names that shape the program."""

    hidden: tuple[int, ...] = (256, 256)  # widths of the layers, of the actor and of each critic
    batch_size: int = 256
    buffer_size: int = 1_000_000  # environment steps kept
    learning_starts: int = 100  # environment steps, of random actions, before the first update
    train_freq: int = 1  # environment steps between rounds of updates
    gradient_steps: int = 1  # updates in a round
    num_envs: int = 1  # environments side by side, of each actor process if there are any
    n_step: int = 1


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 1e-3
    gamma: Any = 0.99
    tau: Any = 0.005  # how far the targets move at each update of the actor
    policy_delay: Any = 2  # updates of the critics for each update of the actor and of the targets
    action_noise: Any = 0.1  # standard deviation of exploration, in half ranges of the action
    target_policy_noise: Any = 0.2  # standard deviation of the target action's noise, in half ranges
    target_noise_clip: Any = 0.5  # the most of it


class Params(NamedTuple):
    """What has gradients, moments, and targets."""

    actor: Any
    critic: Any


class State(NamedTuple):
    params: Params
    target: Params
    optimizer: Params
    hyper: Any  # the agent's own Hyper
    version: Any  # int32, learner updates so far


class Critic(NamedTuple):
    """What values actions, and how that is learned: functions of one sample, whose actions are in [-1, 1]."""

    init: Callable[[Any], Any]  # key -> params
    value: Callable[[Any, Any, Any, Any], Any]  # (params, hyper, obs, action) -> scalar: what the actor climbs
    target: Callable[[Any, Any, NStep, Any, Any], Any]  # (params, hyper, return, next_obs, next_action) -> target
    loss: Callable[[Any, Any, Any, Any, Any], tuple]  # (params, hyper, obs, action, target) -> (loss, error, value)


def least(network: Network, members: int) -> Critic:
    """Critics that learn the same target, from the lesser of their values (Fujimoto et al. 2018, equation 10).

    The actor climbs the first. With one member it is the critic of DDPG.
    """
    init, judge = ensemble(network, members)

    def value(params, hyper, obs, action):
        return judge(params, obs, action)[0, 0]

    def target(params, hyper, ret, next_obs, next_action):
        return ret.reward + ret.discount * jnp.min(judge(params, next_obs, next_action))

    def loss(params, hyper, obs, action, target):
        values = judge(params, obs, action)[:, 0]
        error = target - values
        return jnp.sum(squared(error)), jnp.mean(jnp.abs(error)), values[0]

    return Critic(init, value, target, loss)


def smoothed(hyper, action, key):
    """A target action with clipped noise, within its bounds (Fujimoto et al. 2018, equation 14)."""
    noise = hyper.target_policy_noise * jax.random.normal(key, action.shape)
    return jnp.clip(action + jnp.clip(noise, -hyper.target_noise_clip, hyper.target_noise_clip), -1.0, 1.0)


def td3(
    actor: Network, critic: Critic, actions: Box, *, smooth: Callable = smoothed, numerics: Numerics = PLAIN
) -> Agent:
    """TD3 with `actor`, whose outputs tanh makes actions, and `critic`.

    `smooth` is (hyper, target action in [-1, 1], key) -> the action to value. The number of steps in a return is the
    window of the batch. A batch's weights count for the critics. `numerics` is the precision of actor and critics.
    """
    tx = optax.scale_by_adam()
    low, high = bounds(actions)

    def init(key, hyper) -> State:
        key_actor, key_critic = jax.random.split(key)
        hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
        params = Params(numerics.store(actor.init(key_actor)), numerics.store(critic.init(key_critic)))
        target = Params(*map(numerics.target, params))
        moments = Params(*(numerics.init(tx, part) for part in params))
        return State(params, target, moments, hyper, jnp.zeros((), jnp.int32))

    def policy(state: State) -> Policy:
        random = (state.version == 0).astype(jnp.float32)
        knobs = {"low": jnp.asarray(low), "high": jnp.asarray(high), "noise": state.hyper.action_noise}
        return Policy(numerics.full(state.params.actor), knobs | {"random": random})

    def dist(policy: Policy, obs, key=None) -> ClippedNormal:
        return clipped_normal(actor.apply(policy.params, obs, key), policy.knobs)

    def act(params, obs):
        return jnp.tanh(actor.apply(params, obs, None))

    def delay(hyper):
        return jnp.maximum(jnp.round(hyper.policy_delay), 1.0)

    def due(state: State):
        """Whether the actor and the targets take part in the next update."""
        return (state.version + 1) % delay(state.hyper).astype(jnp.int32) == 0

    def grad(state: State, batch: Batch, key) -> tuple[Params, Info]:
        h, data, moments = state.hyper, batch.data, state.optimizer
        params, slow = (Params(*map(numerics.weights, parts)) for parts in (state.params, state.target))
        ret = jax.vmap(n_step, (0, 0, 0, None))(data.reward, data.terminated, data.truncated, h.gamma)
        obs, action = data.obs[:, 0], jax.vmap(lambda a: unit(a, low, high))(data.action[:, 0])
        next_obs = jax.vmap(lambda x, i: x[i])(data.next_obs, ret.last)

        def aim(ret, next_obs, key):
            next_action = smooth(h, act(slow.actor, next_obs), key)
            return critic.target(slow.critic, h, ret, next_obs, next_action)

        target = jax.vmap(aim)(ret, next_obs, jax.random.split(key, batch.weight.shape))

        def critic_loss(weights):
            loss, error, values = jax.vmap(critic.loss, (None, None, 0, 0, 0))(weights, h, obs, action, target)
            return jnp.mean(batch.weight * loss), (error, values)

        def climb(h, params, moments, obs):
            def actor_loss(weights):  # Silver et al. 2014, equation 9; Lillicrap et al. 2015, equation 6
                return -jnp.mean(jax.vmap(lambda o: critic.value(params.critic, h, o, act(weights, o)))(obs)), ()

            (loss, _), grads = numerics.gradient(actor_loss, params.actor, moments)
            return delay(h) * loss, grads  # so that its mean is that of those that are computed

        (loss, (error, values)), critic_grads = numerics.gradient(critic_loss, params.critic, moments.critic)
        given = h, params, moments.actor, obs
        shapes = jax.eval_shape(climb, *given)

        def rest(*_):
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        policy_loss, actor_grads = if_any(due(state), climb, rest, *given)
        return Params(actor_grads, critic_grads), Info(
            {"loss": loss, "actor_loss": policy_loss, "q": jnp.mean(values)}, error
        )

    def apply(state: State, grads: Params) -> State:
        h, version = state.hyper, state.version + 1
        parts = zip(state.params, state.optimizer, grads, strict=True)
        steps = [numerics.descend(tx, *part, h.learning_rate) for part in parts]
        (actor_params, actor_moments), (critic_params, critic_moments) = steps
        moves = due(state)
        actor_params, actor_moments = jax.tree.map(
            lambda new, old: jnp.where(moves, new, old),
            (actor_params, actor_moments),
            (state.params.actor, state.optimizer.actor),
        )
        params = Params(actor_params, critic_params)
        tau = jnp.where(moves, h.tau, 0.0)
        target = Params(*(numerics.follow(*part, tau) for part in zip(state.target, params, strict=True)))
        return State(params, target, Params(actor_moments, critic_moments), h, version)

    def graft(state: State, donor: State) -> State:
        mine = donor.params.actor
        return state._replace(
            params=state.params._replace(actor=mine),
            target=state.target._replace(actor=numerics.target(mine)),
            optimizer=state.optimizer._replace(actor=numerics.init(tx, mine)),
        )

    return Agent(init, policy, clipped_normal, dist, grad, apply, actor, ratio_from=1, graft=graft)


def greedy(actions: Space) -> dict[str, Any]:
    """The knobs of a policy that acts as well as it can."""
    low, high = bounds(actions)
    return {"low": low.tolist(), "high": high.tolist(), "noise": 0.0, "random": 0.0}


def assemble(static: Static, obs: Box, actions: Space, numerics: Numerics = PLAIN) -> Agent:
    """The TD3 that `static` describes, for these spaces. Raises ValueError for spaces it cannot handle."""
    dims = bounds(actions)[0].size
    assert isinstance(actions, Box)
    actor = actor_network(static.hidden, dims, obs)
    return td3(actor, least(critic_network(static.hidden, obs, dims), 2), actions, numerics=numerics)


recipe = Recipe(Static(), Hyper(), assemble, in_turns, replay, greedy, values="weight")
