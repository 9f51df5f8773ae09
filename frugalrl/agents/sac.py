"""SAC: an actor that maximises return and entropy, twin critics, a learned temperature.

Continuous actions as in Haarnoja et al. 2018 (arXiv 1801.01290 and 1812.05905), discrete ones as in Christodoulou 2019
(arXiv 1910.07207); they differ in one part, `Soft`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..distributions import Categorical, TanhNormal, categorical, gaussian, tanh_normal
from ..losses import n_step, squared
from ..memory import in_turns, replay
from ..networks import mlp
from ..networks import network as build_network
from ..types import Agent, Batch, Box, Discrete, Info, Network, Policy, Recipe, Space
from .actor_critic import ACTOR_GAIN, bounds, ensemble, unit
from .actor_critic import actor as actor_network
from .actor_critic import critic as critic_network
from .descent import PLAIN, Numerics, in_parts
from .pictures import Sight, apart, behind, bottleneck, convolutional, direct, joined

CRITICS = 2


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
    auto_ent_coef: bool = True  # the temperature is learned
    # of pictures only
    encoder_filters: int = 32  # of each convolution of the encoder
    encoder_features: int = 50  # that the actor makes of what the encoder sees, and the critics
    random_shift: int = 4  # pixels that a picture is moved by at most, each time that it is learned from


class Hyper(NamedTuple):
    """Numbers that may differ between the members of a population: leaves of the state."""

    learning_rate: Any = 3e-4
    gamma: Any = 0.99
    tau: Any = 0.005  # how far the target critics move at each update
    ent_coef: Any = 1.0  # the temperature; where it starts, if it is learned
    target_entropy_scale: Any = 1.0  # times the papers' own: -dims, and 0.98 log(actions) for discrete actions


class Params(NamedTuple):
    """What has gradients, and moments."""

    actor: Any
    critic: Any  # stacked, [critics, ...]; of pictures `pictures.Sighted`, with the encoder
    log_ent_coef: Any  # scalar


class State(NamedTuple):
    params: Params
    target: Any  # critics that follow slowly
    optimizer: Params
    hyper: Hyper
    version: Any  # int32, learner updates so far


class Soft(NamedTuple):
    """How a kind of action enters the losses: functions of one sample."""

    critics: Callable[[Any], Any]  # key -> params of the critics
    # (actor, critics, temperature, obs as the actor sees it, as the critics do, key) -> (soft value, entropy)
    value: Callable[[Any, Any, Any, Any, Any, Any], tuple[Any, Any]]
    taken: Callable[[Any, Any, Any], Any]  # (critics, obs, action) -> the value of that action [critics]
    head: Callable[[Any, dict], Any]
    knobs: Callable[[Any], dict]  # version -> knobs
    target_entropy: float  # nats


def squashed(actor: Network, critics: tuple[Callable, Callable], actions: Box, draw: Callable = PLAIN.draw) -> Soft:
    """Continuous actions: expectations over the policy are estimated with one reparameterised sample.

    `actor` gives a mean and a log standard deviation for each dimension, `critics`, an `ensemble`, value an observation
    and an action. `draw` is (TanhNormal, noise) -> (action, log_prob).
    """
    init, judge = critics
    low, high = bounds(actions)

    def value(params, critics, temperature, obs, seen, key):
        # the entropy is of actions in [-1, 1], so that its target does not depend on the environment's units
        dist = TanhNormal(*gaussian(actor.apply(params, obs, None)))
        action, log_prob = draw(dist, jax.random.normal(key, dist.noise_shape()))
        # Haarnoja et al. 2018 (1801.01290), equation 3, with the lesser of two critics (section 4.2)
        return jnp.min(judge(critics, seen, action)) - temperature * log_prob, -log_prob

    def taken(critics, obs, action):
        return judge(critics, obs, unit(action, low, high))[:, 0]

    def knobs(version):
        return {"low": jnp.asarray(low), "high": jnp.asarray(high), "random": (version == 0).astype(jnp.float32)}

    return Soft(init, value, taken, tanh_normal, knobs, -float(low.size))


def enumerated(actor: Network, critics: tuple[Callable, Callable], actions: Discrete) -> Soft:
    """Discrete actions: expectations over the policy are exact sums.

    `actor` gives logits, `critics`, an `ensemble`, a value for each action. Before learning the logits are nearly
    equal, so that actions are random without a knob.
    """
    init, judge = critics

    def value(params, critics, temperature, obs, seen, key):
        dist = Categorical(actor.apply(params, obs, None))
        # Christodoulou 2019, equation 10
        entropy = dist.entropy()
        return jnp.sum(dist.probs() * jnp.min(judge(critics, seen), 0)) + temperature * entropy, entropy

    def taken(critics, obs, action):
        return judge(critics, obs)[:, action]

    return Soft(init, value, taken, categorical, lambda version: {}, 0.98 * log(actions.n))


def sac(
    actor: Network, soft: Soft, *, auto_ent_coef: bool = True, sight: Sight | None = None, numerics: Numerics = PLAIN
) -> Agent:
    """SAC with `actor` as its policy and the actions of `soft`.

    `sight` is what actor and critics see observations through, by default nothing. Its encoder is learned as a part of
    the critics, and so has a target of its own; the actor's loss is of what the encoder sees, and teaches it nothing
    (Yarats et al. 2019, arXiv 1910.01741). Each observation of a batch is augmented once, for all losses: K = M = 1 of
    Kostrikov et al. 2020 (arXiv 2004.13649). What acts is encoder and actor, as one network.

    `auto_ent_coef` learns the temperature so that the entropy stays near its target (1812.05905, section 5). The number
    of steps in a return is the window of the batch. A batch's weights count for the critics. `numerics` is the
    precision of actor and critics; the temperature, one number, is always float32.
    """
    tx = optax.scale_by_adam()
    sight = direct(actor.obs) if sight is None else sight
    acting = sight.acting(actor)

    def init(key, hyper: Hyper) -> State:
        key_actor, key_critic = jax.random.split(key)
        hyper = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
        encoder = sight.init(jax.random.fold_in(key_critic, 1))
        critics = numerics.store(joined(encoder, soft.critics(key_critic)))
        log_ent_coef = jnp.log(jnp.maximum(hyper.ent_coef, 1e-8))
        params = Params(numerics.store(actor.init(key_actor)), critics, log_ent_coef)
        moments = Params(numerics.init(tx, params.actor), numerics.init(tx, critics), tx.init(log_ent_coef))
        return State(params, numerics.target(critics), moments, hyper, jnp.zeros((), jnp.int32))

    def policy(state: State) -> Policy:
        encoder = apart(numerics.full(state.params.critic)).encoder
        return Policy((*encoder, *numerics.full(state.params.actor)), soft.knobs(state.version))

    def dist(policy: Policy, obs, key=None):
        return soft.head(acting.apply(policy.params, obs, key), policy.knobs)

    def grad(state: State, batch: Batch, key) -> tuple[Params, Info]:
        h, data, moments = state.hyper, batch.data, state.optimizer
        params = state.params._replace(
            actor=numerics.weights(state.params.actor), critic=numerics.weights(state.params.critic)
        )
        keys = jax.random.split(key, (2, *batch.weight.shape))
        temperature = jnp.exp(params.log_ent_coef)
        ret = jax.vmap(n_step, (0, 0, 0, None))(data.reward, data.terminated, data.truncated, h.gamma)
        next_obs = jax.vmap(lambda x, i: x[i])(data.next_obs, ret.last)
        obs, next_obs = (
            sight.augmented(x, jax.random.fold_in(key, i)) for i, x in enumerate((data.obs[:, 0], next_obs))
        )
        action, online, slow = data.action[:, 0], apart(params.critic), apart(numerics.weights(state.target))
        soft_values = jax.vmap(soft.value, (None, None, None, 0, 0, 0))

        ahead, judged = (sight.see(each.encoder, next_obs) for each in (online, slow))
        bootstrap, _ = soft_values(params.actor, slow.critics, temperature, ahead, judged, keys[0])
        target = ret.reward + ret.discount * bootstrap

        def critic_loss(learned, some):  # 1801.01290, equation 5
            (encoder, critics), (obs, action, target, weight) = apart(learned), some
            seen = sight.see(encoder, obs)
            values = jax.vmap(soft.taken, (None, 0, 0))(critics, seen, action)
            error = target[:, None] - values
            return jnp.sum(weight * jnp.sum(squared(error), -1)) / batch.weight.size, (error, values, seen)

        def actor_loss(weights):  # 1801.01290, equation 12; Christodoulou 2019, equation 12
            values, entropy = soft_values(weights, online.critics, temperature, seen, seen, keys[1])
            return -jnp.mean(values), jnp.mean(entropy)

        parts = in_parts((obs, action, target, batch.weight), sight.at_once)
        (loss, (error, values, seen)), critic_grads = numerics.gradient(
            critic_loss, params.critic, moments.critic, parts
        )
        (policy_loss, entropy), actor_grads = numerics.gradient(actor_loss, params.actor, moments.actor)
        # 1812.05905, equation 18, for the logarithm: its steps do not shrink with the temperature
        gap = entropy - h.target_entropy_scale * soft.target_entropy
        temperature_grad = gap if auto_ent_coef else jnp.zeros_like(gap)
        metrics = {"loss": loss, "actor_loss": policy_loss, "q": jnp.mean(values), "entropy": entropy}
        priority = jnp.mean(jnp.abs(error), -1)
        return Params(actor_grads, critic_grads, temperature_grad), Info(metrics | {"ent_coef": temperature}, priority)

    def apply(state: State, grads: Params) -> State:
        h, params, moments = state.hyper, state.params, state.optimizer
        parts = zip((numerics, numerics, PLAIN), params, moments, grads, strict=True)
        steps = [each.descend(tx, *part, h.learning_rate) for each, *part in parts]
        params, moments = (Params(*found) for found in zip(*steps, strict=True))
        return State(params, numerics.follow(state.target, params.critic, h.tau), moments, h, state.version + 1)

    def graft(state: State, donor: State) -> State:
        if acting is not actor:  # what acts sees through what the donor's critics have learned
            return donor
        mine = donor.params.actor
        return state._replace(
            params=state.params._replace(actor=mine),
            optimizer=state.optimizer._replace(actor=numerics.init(tx, mine)),
        )

    return Agent(init, policy, soft.head, dist, grad, apply, acting, ratio_from=1, graft=graft)


def greedy(actions: Space) -> dict[str, Any]:
    """The knobs of a policy that acts as well as it can."""
    if isinstance(actions, Discrete):
        return {}
    low, high = bounds(actions)
    return {"low": low.tolist(), "high": high.tolist(), "random": 0.0}


def assemble(static: Static, obs: Box, actions: Space, numerics: Numerics = PLAIN) -> Agent:
    """The SAC that `static` describes, for these spaces. Raises ValueError for spaces it cannot handle."""
    discrete = isinstance(actions, Discrete)
    dims, out = (0, actions.n) if discrete else (bounds(actions)[0].size, 1)
    outputs = out if discrete else 2 * dims
    if len(obs.shape) == 1:
        sight, actor = direct(obs), actor_network(static.hidden, outputs, obs)
        critics = ensemble(critic_network(static.hidden, obs, dims, out), CRITICS)
    else:
        sight = convolutional(obs, static.encoder_filters, static.random_shift)
        below = bottleneck(static.encoder_features)
        actor = build_network((*below, *mlp(static.hidden, outputs, ACTOR_GAIN)), sight.out)
        heads = critic_network(static.hidden, Box((static.encoder_features,)), dims, out)
        critics = behind(below, sight.out, ensemble(heads, CRITICS))
    if discrete:
        soft = enumerated(actor, critics, actions)
    else:
        soft = squashed(actor, critics, actions, numerics.draw)
    return sac(actor, soft, auto_ent_coef=static.auto_ent_coef, sight=sight, numerics=numerics)


recipe = Recipe(Static(), Hyper(), assemble, in_turns, replay, greedy, values="weight")
