"""Policy gradients from rollouts: PPO, A2C, IMPALA and PTR-PPO are one actor-critic with different parts.

They differ in the surrogate that the policy climbs, in how targets are made (a Corrector), in what the memory deals
(only the newest rollouts, shuffled steps, replayed rollouts) and in whether actors wait for the learner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import distributions
from ..losses import backward, before_and_after, lambda_return
from ..memory import by_rollouts, in_epochs, rollouts
from ..networks import Dense, Layers, absorbed, at_once, out_features, released, torso
from ..networks import network as build_network
from ..types import (
    Agent,
    Batch,
    Box,
    Corrector,
    Discrete,
    Info,
    Memory,
    Network,
    Policy,
    Recipe,
    Space,
    Trace,
    Transition,
)
from .actor_critic import bounds, unit
from .descent import PLAIN, Numerics, by_width, in_parts
from .schedules import learning_rate


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 3e-4
    anneal_lr: Any = 0.0  # the share of the learning rate that is gone at the end of training, linearly
    gamma: Any = 0.99
    gae_lambda: Any = 0.95
    clip_range: Any = 0.2
    ent_coef: Any = 0.0
    vf_coef: Any = 0.5
    max_grad_norm: Any = 0.5
    log_std_init: Any = 0.0  # of continuous actions: the logarithm of the deviation that exploration begins with
    bounds_coef: Any = 0.0  # of the squared distance of a mean action beyond its bounds
    total_steps: Any = 100_000  # environment steps of the training run
    steps_per_update: Any = 1.0  # environment steps for each learner update


class Normaliser(NamedTuple):
    """Running moments of a stream of arrays (Welford 1962; Chan et al. 1979 for batches)."""

    mean: Any
    var: Any
    count: Any

    @classmethod
    def start(cls, shape: tuple[int, ...] = ()) -> Normaliser:
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.float32(1e-4))

    def seen(self, x) -> Normaliser:
        """The moments after `x` [n, ...]."""
        n = jnp.float32(x.shape[0])
        mean, var = jnp.mean(x, 0), jnp.var(x, 0)
        total = self.count + n
        gap = mean - self.mean
        square = self.var * self.count + var * n + gap * gap * (self.count * n / total)
        return Normaliser(self.mean + gap * (n / total), square / total, total)

    def scale(self):
        return jax.lax.rsqrt(self.var + 1e-8)


class Rewards(NamedTuple):
    """The scale of rewards: by the deviation of the discounted return so far (Engstrom et al. 2020, section 3)."""

    ret: Any  # float32 [lanes]
    moments: Normaliser


class State(NamedTuple):
    params: Any
    optimizer: Any
    hyper: Hyper
    version: Any  # int32, learner updates so far
    obs: Any  # Normaliser of observations, or ()
    rewards: Any  # Rewards, or ()


class Params(NamedTuple):
    actor: Any  # weights of the actor's network
    critic: Any  # weights of the critic's; of its last layer only, if it shares the rest with the actor
    log_std: Any  # float32 [dims] of a normal's, which no observation changes; () for discrete actions


class Extra(NamedTuple):
    """What `prepare` works out for each step of a rollout."""

    advantage: Any
    target: Any
    weight: Any  # of the advantage and of the value's loss
    log_prob: Any = ()  # of the action, under the policy that prepared; () if the ratio is to the one that acted


class Model(NamedTuple):
    """An actor's network and a critic beside it or on top of its features."""

    network: Network  # the actor's
    init: Callable[[Any], tuple[Any, Any]]  # key -> weights of (actor, critic)
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]  # (actor, critic, one observation) -> (outputs, value)


def apart(actor: Layers, critic: Layers, obs: Box) -> Model:
    """Two networks that share nothing."""
    one, two = build_network(actor, obs), build_network(critic, obs)

    def init(key):
        key_actor, key_critic = jax.random.split(key)
        return one.init(key_actor), two.init(key_critic)

    return Model(one, init, lambda a, c, x: (one.apply(a, x, None), two.apply(c, x, None)[0]))


def shared(actor: Layers, obs: Box) -> Model:
    """The value is one more output of the actor's network, with weights of its own (Mnih et al. 2016, section 5)."""
    body, last = actor[:-1], actor[-1]
    assert isinstance(last, Dense)
    whole, torso, features = build_network(actor, obs), build_network(body, obs), Box((out_features(body, obs.shape),))
    out, value = build_network((last,), features), build_network((last._replace(features=1, gain=1.0),), features)

    def init(key):
        key_actor, key_critic = jax.random.split(key)
        return whole.init(key_actor), value.init(key_critic)

    def apply(a, c, x):
        hidden = torso.apply(a[:-1], x, None)
        return out.apply(a[-1:], hidden, None), value.apply(c, hidden, None)[0]

    return Model(whole, init, apply)


def clipped(ratio, advantage, clip_range):
    """The surrogate of PPO (Schulman et al. 2017, equation 7)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_range, 1 + clip_range) * advantage)


def actor_critic(
    model: Model,
    head: Callable,
    *,
    surrogate: Callable | None = clipped,
    corrector: Corrector = lambda_return,
    weigh: Callable[[Trace], Any] | None = None,
    one_step: bool = False,
    ratio_to_latest: bool = False,
    once: bool = False,
    optimizer: optax.GradientTransformation,
    reduce: Callable = jnp.mean,
    normalize_advantage: bool = True,
    normalize_obs: bool = False,
    reward_lanes: int = 0,
    dims: int = 0,
    limits: tuple[Any, Any] | None = None,
    beyond: Callable | None = None,
    numerics: Numerics = PLAIN,
) -> Agent:
    """An actor-critic on `model`, whose actor's outputs `head` turns into a distribution.

    `surrogate` of (ratio, advantage, clip_range) is climbed; None climbs the plain policy gradient, advantage times
    log-probability (Mnih et al. 2016, section 4). `optimizer` is an optax direction, without its learning rate.
    `corrector` makes targets and advantages of each rollout, once for all updates of an iteration; `weigh` says how
    much each step of it counts. With `one_step` values learn r + gamma V(next) instead of the Corrector's target. The
    surrogate's ratio is to the policy that acted, or with `ratio_to_latest` to that of the last iteration. `once` is
    for a memory that deals each rollout whole, and once: the pass whose gradient is taken then makes the targets, too.
    `reduce` makes a number of the losses of a batch: the mean, or the sum as in IMPALA. `normalize_obs` keeps the
    moments of observations and folds them into the first layer, so that actors run a plain network. `reward_lanes`, if
    not 0, is how many environments there are to scale rewards of. `dims` is the size of a continuous action; `limits`
    are its (low, high), [dims] each, for a head that keeps within them. `beyond` of mean actions [dims] says how far
    they are out of bounds, for one that does not. `numerics` is the precision of the learner.
    """
    fixed = {} if limits is None else {"low": jnp.float32(limits[0]), "high": jnp.float32(limits[1])}

    def init(key, hyper: Hyper) -> State:
        actor, critic = model.init(key)
        hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
        params = numerics.store(Params(actor, critic, jnp.full(dims, hyper.log_std_init) if dims else ()))
        obs = Normaliser.start(model.network.obs.shape) if normalize_obs else ()
        rewards = Rewards(jnp.zeros(reward_lanes), Normaliser.start()) if reward_lanes else ()
        return State(params, numerics.init(optimizer, params), hyper, jnp.zeros((), jnp.int32), obs, rewards)

    def fold(state: State, weights: tuple) -> tuple:
        """The weights that take raw observations and give what `weights` give on normalised ones."""
        return absorbed(weights, state.obs.mean, state.obs.scale()) if normalize_obs else weights

    def unfold(state: State, weights: tuple) -> tuple:
        return released(weights, state.obs.mean, state.obs.scale()) if normalize_obs else weights

    def seen(state: State, obs):
        """Observations [..., n] as networks learn from them."""
        if not normalize_obs:
            return obs
        mean, scale = (jnp.broadcast_to(x, obs.shape) for x in (state.obs.mean, state.obs.scale()))
        return (obs - mean) * scale

    def knobs(params: Params) -> dict:
        return fixed | {"log_std": params.log_std.astype(jnp.float32)} if dims else {}

    def policy(state: State) -> Policy:
        params = numerics.full(state.params)
        return Policy(fold(state, params.actor), knobs(params))

    def dist(policy: Policy, obs, key=None):
        return head(model.network.apply(policy.params, obs, key), policy.knobs)

    def observe(state: State, rollout: Transition, stream) -> State:
        obs, rewards = state.obs, state.rewards
        if normalize_obs:
            obs = obs.seen(rollout.obs.reshape(-1, *model.network.obs.shape))
        if reward_lanes:
            lanes = rollout.reward.shape[1]
            start = jnp.asarray(stream, jnp.int32) * lanes

            def step(ret, now):
                reward, ended = now
                ret = state.hyper.gamma * ret + reward
                return jnp.where(ended, 0.0, ret), ret

            before = jax.lax.dynamic_slice_in_dim(rewards.ret, start, lanes)
            last, rets = jax.lax.scan(step, before, (rollout.reward, rollout.terminated | rollout.truncated))
            after = jax.lax.dynamic_update_slice_in_dim(rewards.ret, last, start, 0)
            rewards = Rewards(after, rewards.moments.seen(rets.reshape(-1)))
        return state._replace(obs=obs, rewards=rewards)

    def judged(state: State, params: Params, rollout: Transition, most: int | None = None) -> tuple[Any, Any, Extra]:
        """(outputs, values, what they make of the steps) of one rollout [time, ...]."""

        def judge(params: Params, obs):
            return model.apply(params.actor, params.critic, obs)

        obs, next_obs = seen(state, rollout.obs), seen(state, rollout.next_obs)
        (outputs, value), (_, bootstrap) = before_and_after(judge, params, obs, next_obs, rollout.truncated, most)
        log_prob = jax.vmap(lambda o, a: numerics.log_prob(head(o, knobs(params)), a))(outputs, rollout.action)
        reward = rollout.reward
        if reward_lanes:
            reward = jnp.clip(reward * state.rewards.moments.scale(), -10.0, 10.0)
        trace = Trace(
            reward=reward,
            discount=jnp.where(rollout.terminated, 0.0, state.hyper.gamma),
            ended=rollout.terminated | rollout.truncated,
            value=value,
            bootstrap=bootstrap,
            log_ratio=log_prob - rollout.log_prob,
        )
        made = corrector(trace, state.hyper.gae_lambda)
        weight = jnp.ones_like(value) if weigh is None else weigh(trace)
        target = trace.reward + trace.discount * bootstrap if one_step else made.target
        return outputs, value, Extra(made.advantage, target, weight, log_prob if ratio_to_latest else ())

    def prepare(state: State, rollout: Transition) -> Extra:
        return judged(state, numerics.weights(state.params), rollout, at_once(model.network))[-1]

    def grad(state: State, batch: Batch, key) -> tuple[Params, Info]:
        h, data = state.hyper, batch.data

        def loss_of(params: Params, outputs, value, action, old, extra: Extra):
            """What the losses of steps [rollouts, time] are made of."""

            def one(outputs, value, action, old, advantage, target):
                chosen = head(outputs, knobs(params))
                log_prob = numerics.log_prob(chosen, action)
                ratio = jnp.exp(log_prob - old)
                gain = log_prob * advantage if surrogate is None else surrogate(ratio, advantage, h.clip_range)
                # actions are clipped to their bounds, and a mean far beyond them is one that no reward calls back
                excess = beyond(chosen.mode()) if beyond else 0.0
                return gain, 0.5 * (value - target) ** 2, chosen.entropy(), ratio, excess

            steps = outputs, value, action, old, extra.advantage, extra.target
            gain, value, entropy, ratio, excess = jax.vmap(jax.vmap(one))(*steps)
            losses = extra.weight * (h.vf_coef * value - gain) - h.ent_coef * entropy + h.bounds_coef * excess
            return share * jnp.sum(losses), (gain, value, entropy, ratio, extra.advantage)

        def at_first_sight(params: Params, part):
            rollouts, weight = part
            outputs, value, extra = jax.vmap(lambda each: judged(state, params, each))(rollouts)
            extra = jax.lax.stop_gradient(extra._replace(weight=weight[:, None] * extra.weight))
            return loss_of(params, outputs, value, rollouts.action, rollouts.log_prob, extra)

        def as_prepared(params: Params, part):
            obs, action, old, extra = part
            outputs, value = jax.vmap(jax.vmap(partial(model.apply, params.actor, params.critic)))(obs)
            return loss_of(params, outputs, value, action, old, extra)

        shape, most = data.reward.shape, at_once(model.network)
        share = reduce(jnp.ones(shape)) / math.prod(shape)  # of a step's loss in the loss: 1 of a sum
        if once:
            objective, parts = at_first_sight, (data, batch.weight)
            most = most and max(most // (shape[1] + 1), 1)
        else:
            advantage = batch.extra.advantage
            if normalize_advantage:
                advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
            old = batch.extra.log_prob if ratio_to_latest else data.log_prob
            extra = batch.extra._replace(advantage=advantage, weight=batch.weight[:, None] * batch.extra.weight)
            objective, parts = as_prepared, (seen(state, data.obs), data.action, old, extra)
        (loss, (gain, value, entropy, ratio, advantage)), grads = numerics.gradient(
            objective, numerics.weights(state.params), state.optimizer, in_parts(parts, most)
        )
        metrics = {
            "loss": loss,
            "policy_loss": -jnp.mean(gain),
            "value_loss": jnp.mean(value),
            "entropy": jnp.mean(entropy),
            "clip_fraction": jnp.mean((jnp.abs(ratio - 1) > h.clip_range).astype(jnp.float32)),
            # the k3 estimate of KL(behaviour || policy), never negative
            "approx_kl": jnp.mean(ratio - 1 - jnp.log(ratio)),
        }
        raw = advantage if once else batch.extra.advantage
        return grads, Info(metrics, jnp.mean(jnp.abs(raw), -1))

    def apply(state: State, grads: Params) -> State:
        params, opt = numerics.descend(
            optimizer, state.params, state.optimizer, grads, learning_rate(state), state.hyper.max_grad_norm
        )
        return state._replace(params=params, optimizer=opt, version=state.version + 1)

    def graft(state: State, donor: State) -> State:
        """The critic stays; it sees observations as the new actor does."""

        def one(path: tuple, mine, theirs):  # numbers may be kept in two parts, each of which has a critic
            return mine if "critic" in [getattr(key, "name", None) for key in path] else theirs

        params = jax.tree_util.tree_map_with_path(one, state.params, donor.params)
        return state._replace(params=params, optimizer=numerics.init(optimizer, params), obs=donor.obs)

    agent = Agent(
        init, policy, head, dist, grad, apply, model.network, observe=observe, fold=fold, unfold=unfold, graft=graft
    )
    return agent if once else agent._replace(prepare=prepare)


class PPO(NamedTuple):
    """Numbers and names that shape the program of `ppo`."""

    hidden: tuple[int, ...] = (64, 64)  # widths of the layers, of actor and critic each
    # or "mlp", "minatar", "planes", "small", "nature", "impala"; on pixels actor and critic share it
    network: str = "auto"
    base_width: int = 0  # layers with more inputs learn at base_width / inputs of the learning rate; 0: all alike
    num_envs: int = 8  # of all actors together
    n_steps: int = 128  # of each environment in a rollout
    n_epochs: int = 4
    num_minibatches: int = 4
    normalize_advantage: bool = True
    normalize_obs: bool = False
    normalize_reward: bool = False
    squash: bool = False  # continuous actions through tanh, within their bounds


class A2C(NamedTuple):
    """Numbers and names that shape the program of `a2c`."""

    hidden: tuple[int, ...] = (64, 64)
    network: str = "auto"
    base_width: int = 0
    num_envs: int = 8
    n_steps: int = 5
    optimizer: str = "rmsprop"  # or "adam"
    normalize_advantage: bool = False
    normalize_obs: bool = False
    normalize_reward: bool = False
    squash: bool = False  # continuous actions through tanh, within their bounds


class Impala(NamedTuple):
    """Numbers and names that shape the program of `impala`."""

    hidden: tuple[int, ...] = (64, 64)
    network: str = "auto"  # "nature" is shallow; "impala" the deep one of 15 layers
    base_width: int = 0
    num_envs: int = 16
    n_steps: int = 20
    optimizer: str = "rmsprop"
    buffer_size: int = 0  # rollouts kept for replay, in half of each batch; 0 for none
    sum_loss: bool = True  # over the steps of a batch, as the paper has it: learning rates are of that loss
    normalize_obs: bool = False
    normalize_reward: bool = False
    squash: bool = False  # continuous actions through tanh, within their bounds


class PtrPPO(NamedTuple):
    """Numbers and names that shape the program of `ptr-ppo`."""

    hidden: tuple[int, ...] = (64, 64)
    network: str = "auto"
    base_width: int = 0
    num_envs: int = 8
    n_steps: int = 128
    n_epochs: int = 2  # passes over the new rollouts
    replay_epochs: int = 8  # passes over as many replayed ones each
    num_minibatches: int = 4
    buffer_size: int = 256  # rollouts kept
    priority: str = "max"  # absolute advantage, or "mean", or "reward"
    # What the paper leaves open. The defaults are those of an unofficial implementation; `ptr_fillings` in
    # benchmarks/comparisons.py compares them.
    priority_alpha: float = 0.7  # the exponent of priorities; 0 replays uniformly
    value_target: str = "lambda"  # the lambda-return, or "one-step": r + gamma V(next)
    ratio: str = "behaviour"  # the surrogate's, to the policy that acted, or "latest": to that of the last iteration
    normalize_advantage: bool = False
    normalize_obs: bool = False
    normalize_reward: bool = False
    squash: bool = False  # continuous actions through tanh, within their bounds


def trajectory_weight(trace: Trace, margin: float = 0.2):
    """The truncated importance weight of the steps that follow, [time] (Liang et al. 2021, arXiv 2112.03798).

    P_t = rho_t P_t+1, begun anew where an episode ends; what exceeds 1 - margin counts as a share of itself, so that
    the weight stays below 2 - margin and is 1 for data of the own policy.
    """
    total = jnp.exp(backward(trace.log_ratio, jnp.where(trace.ended, 0.0, 1.0)))
    low = 1 - margin
    return jnp.minimum(total, low) + jax.nn.relu((total - low) / jnp.maximum(total, 1e-30))


PRIORITIES: dict[str, Callable[[Transition, Extra], Any]] = {
    "max": lambda rollout, extra: jnp.max(jnp.abs(extra.advantage)),
    "mean": lambda rollout, extra: jnp.mean(jnp.abs(extra.advantage)),
    "reward": lambda rollout, extra: jax.nn.softplus(jnp.sum(rollout.reward)),
}


def prioritised(kind: str, alpha: float = 0.7, least: float = 0.01) -> Callable[[Transition, Extra], Any]:
    """How likely a rollout is replayed, before scaling: by its largest or mean absolute advantage, or its reward.

    Rewards are summed and enter through a softplus, since a probability may not be negative.
    """
    size = choice("priority", kind, PRIORITIES)
    return lambda rollout, extra: (size(rollout, extra) + least) ** alpha


OPTIMIZERS = {
    "adam": lambda: optax.scale_by_adam(eps=1e-5),
    "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-5),
}


def _model(static: Any, obs: Box, out: int) -> Model:
    """The networks of `static` for an actor with `out` outputs."""
    layers = torso(static.network, static.hidden, obs)
    actor = (*layers, Dense(out, relu=False, gain=0.01))
    if len(obs.shape) > 1:
        return shared(actor, obs)
    return apart(actor, (*layers, Dense(1, relu=False, gain=1.0)), obs)


def _acting(actions: Space, squash: bool) -> tuple[Callable, int, dict[str, Any]]:
    """(head, outputs that it takes, arguments of `actor_critic` that go with it)."""
    if squash:
        try:
            limits = bounds(actions)
        except ValueError as error:
            raise ValueError(f"with squash=true {error}; leave that out") from None
        return distributions.squashed_normal, len(limits[0]), {"dims": len(limits[0]), "limits": limits}
    if isinstance(actions, Discrete):
        return distributions.categorical, actions.n, {}
    (dims,) = actions.shape
    try:
        low, high = bounds(actions)
    except ValueError:  # an action may have none
        return distributions.normal, dims, {"dims": dims}
    return distributions.normal, dims, {
        "dims": dims, "beyond": lambda mean: jnp.sum(jax.nn.relu(jnp.abs(unit(mean, low, high)) - 1) ** 2)
    }  # fmt: skip


def assembled(static: Any, obs: Box, actions: Space, **parts: Any) -> Agent:
    """The `actor_critic` with the network, optimiser and normalisers of `static`; `parts` are its other arguments."""
    make = choice("optimizer", getattr(static, "optimizer", "adam"), OPTIMIZERS)
    head, out, acting = _acting(actions, static.squash)
    if static.normalize_obs and len(obs.shape) > 1:
        raise ValueError("normalize_obs is for observations that are vectors; pixels are scaled already")
    return actor_critic(
        _model(static, obs, out),
        head,
        optimizer=by_width(make(), static.base_width),
        **acting,
        normalize_obs=static.normalize_obs,
        reward_lanes=static.num_envs if static.normalize_reward else 0,
        **parts,
    )


def choice(kind: str, name: str, table: Any) -> Any:
    """The entry of that name. Raises ValueError if there is none."""
    if name not in table:
        raise ValueError(f"{kind}={name!r} does not exist; there are: {', '.join(table)}")
    return table[name]


def _ppo(
    static: PPO, obs: Box, actions: Space, corrector: Corrector = lambda_return, numerics: Numerics = PLAIN
) -> Agent:
    return assembled(
        static, obs, actions,
        corrector=corrector, normalize_advantage=static.normalize_advantage, numerics=numerics,
    )  # fmt: skip


def _a2c(
    static: A2C, obs: Box, actions: Space, corrector: Corrector = lambda_return, numerics: Numerics = PLAIN
) -> Agent:
    return assembled(
        static, obs, actions,
        surrogate=None, corrector=corrector, normalize_advantage=static.normalize_advantage, once=_once(static),
        numerics=numerics,
    )  # fmt: skip


def _impala(
    static: Impala, obs: Box, actions: Space, corrector: Corrector = lambda_return, numerics: Numerics = PLAIN
) -> Agent:
    return assembled(
        static, obs, actions,
        surrogate=None, corrector=corrector, normalize_advantage=False, once=True,
        reduce=jnp.sum if static.sum_loss else jnp.mean, numerics=numerics,
    )  # fmt: skip


def _ptr_ppo(
    static: PtrPPO, obs: Box, actions: Space, corrector: Corrector = lambda_return, numerics: Numerics = PLAIN
) -> Agent:
    return assembled(
        static, obs, actions,
        corrector=corrector, weigh=trajectory_weight, normalize_advantage=static.normalize_advantage,
        one_step=choice("value_target", static.value_target, {"lambda": False, "one-step": True}),
        ratio_to_latest=choice("ratio", static.ratio, {"behaviour": False, "latest": True}),
        numerics=numerics,
    )  # fmt: skip


def greedy(actions: Space) -> dict[str, Any]:
    """The knobs of a policy that acts as well as it can, squashed or not."""
    if isinstance(actions, Discrete):
        return {}
    low, high = (np.broadcast_to(x, actions.shape).tolist() for x in (actions.low, actions.high))
    return {"log_std": [0.0] * actions.shape[0], "low": low, "high": high}


def _once(static: A2C) -> bool:
    """Whether a rollout needs no second look: advantages are compared with those of the whole batch."""
    return not static.normalize_advantage


def _a2c_memory(static: A2C, example: Transition, **shape: Any) -> Memory:
    return rollouts(example, whole=_once(static), **shape)


def _impala_memory(static: Impala, example: Transition, **shape: Any) -> Memory:
    beside = int(static.buffer_size > 0)
    return rollouts(example, capacity=static.buffer_size, beside=beside, alone=True, whole=True, **shape)


def _ptr_memory(static: PtrPPO, example: Transition, **shape: Any) -> Memory:
    return rollouts(
        example, epochs=static.n_epochs, minibatches=static.num_minibatches, passes=static.replay_epochs,
        capacity=static.buffer_size, priority=prioritised(static.priority, static.priority_alpha), **shape,
    )  # fmt: skip


ppo = Recipe(PPO(), Hyper(), _ppo, lambda s: by_rollouts(s, s.n_epochs * s.num_minibatches), in_epochs, greedy)
a2c = Recipe(
    A2C(),
    Hyper(learning_rate=7e-4, gae_lambda=1.0, ent_coef=0.01),
    _a2c,
    lambda s: by_rollouts(s, 1),
    _a2c_memory,
    greedy,
)
impala = Recipe(
    Impala(),
    Hyper(learning_rate=6e-4, anneal_lr=1.0, gae_lambda=1.0, ent_coef=0.01, max_grad_norm=40.0),
    _impala,
    lambda s: by_rollouts(s, 1, waits=False),
    _impala_memory,
    greedy,
    corrector="vtrace",
)
ptr_ppo = Recipe(
    PtrPPO(),
    Hyper(ent_coef=0.01),
    _ptr_ppo,
    lambda s: by_rollouts(s, (s.n_epochs + s.replay_epochs) * s.num_minibatches),
    _ptr_memory,
    greedy,
)
