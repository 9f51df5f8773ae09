"""PPO, A2C, IMPALA, PTR-PPO and A3C: each part against NumPy; with PQN, each switch alone, and the laws of a run."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import GAMMA, PROBES
from small import bits

from frugalrl import checkpoint, rng
from frugalrl.agents import a3c, ppo, pqn
from frugalrl.agents.ppo import Extra, Hyper, Normaliser, prioritised, trajectory_weight
from frugalrl.config import values_of
from frugalrl.envs.cartpole import cartpole
from frugalrl.levers.correct import ACTION_VALUES, STATE_VALUES
from frugalrl.networks import Dense, network
from frugalrl.policy import HEADS
from frugalrl.runtime import compiled
from frugalrl.runtime.actor_learner import in_rotation
from frugalrl.types import Agent, Batch, Box, Discrete, Recipe, Trace, Transition, update

KEY = jax.random.key(0)
OBS, ACTIONS = Box((4,)), Discrete(2)
BOUNDED = Box((2,), "float32", (-1.0, 0.5), (1.0, 2.0))
RECIPES: dict[str, Recipe] = {"ppo": ppo.ppo, "a2c": ppo.a2c, "impala": ppo.impala, "ptr-ppo": ppo.ptr_ppo}
RECIPES["a3c"] = a3c.recipe
ROLLOUTS = RECIPES | {"pqn": pqn.recipe}  # all that learn from rollouts
SMALL = {"hidden": (16,), "num_envs": 4, "n_steps": 8, "num_minibatches": 2, "n_epochs": 2, "replay_epochs": 2}
HYPER = Hyper(learning_rate=1e-2, total_steps=1000.0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it is the compiler that takes time
CORRECTORS = {"state": STATE_VALUES, "action": ACTION_VALUES}


def small(name: str, **switches: Any) -> Any:
    """The static part of a recipe, made small."""
    static = ROLLOUTS[name].static
    return static._replace(**{k: v for k, v in SMALL.items() if k in static._fields} | switches)


def made(name: str, actions: Any = ACTIONS, obs: Box = OBS, **switches: Any) -> Agent:
    recipe, static = ROLLOUTS[name], small(name, **switches)
    return recipe.assemble(static, obs, actions, CORRECTORS[values_of(recipe, static)][recipe.corrector])


def numbers(name: str) -> Any:
    """The hyper-parameters of tests, for a recipe that may have others."""
    hyper = ROLLOUTS[name].hyper
    return hyper._replace(**{k: v for k, v in HYPER._asdict().items() if k in hyper._fields})


def lane(seed: int = 0, time: int = 12, ends: float = 0.15, dims: int = 0) -> Transition:
    """A rollout of no environment, [time, ...]."""
    r = np.random.default_rng(seed)
    obs = r.standard_normal((time + 1, 4), np.float32)
    action = r.standard_normal((time, dims), np.float32) if dims else r.integers(0, 2, time, np.int32)
    terminated, truncated = r.random(time) < ends, r.random(time) < ends
    log_prob = np.log(r.uniform(0.2, 0.8, time)).astype(np.float32)
    reward = r.standard_normal(time, np.float32)
    last = obs[1:] + 0.1 * (terminated | truncated)[:, None].astype(np.float32)  # before a reset it is another one
    data = Transition(
        obs[:-1], action, reward, terminated, truncated & ~terminated, last, log_prob, np.zeros(time, np.int32)
    )
    return jax.tree.map(jnp.asarray, data)


def unprepared(agent: Agent) -> bool:
    return agent.prepare is Agent._field_defaults["prepare"]


def batch_of(agent: Agent, state: Any, data: Transition) -> Batch:
    """One rollout as it is dealt: step by step, or whole to an agent that looks at it once."""
    if unprepared(agent):
        return Batch(jax.tree.map(lambda x: x[None], data), jnp.ones(1), jnp.arange(1))
    extra = agent.prepare(state, data)
    one = jax.tree.map(lambda x: x[:, None], (data, extra))
    n = data.reward.shape[0]
    return Batch(one[0], jnp.ones(n), jnp.arange(n), one[1])


def stirred(agent: Agent, seed: int = 1) -> Any:
    """A state whose policy is not the even one it starts as."""
    state = agent.init(jax.random.key(seed), HYPER)
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return state._replace(params=tree.unflatten(moved))


def own(agent: Agent, state: Any, data: Transition) -> Transition:
    """The same data, as if the agent's own policy had acted."""
    policy = agent.policy(state)
    log_prob = jax.vmap(lambda o, a: agent.dist(policy, o, KEY).log_prob(a))(data.obs, data.action)
    return data._replace(log_prob=log_prob)


def values(agent: Agent, state: Any, obs: Any) -> np.ndarray:
    """V of observations [n, ...]: the negative advantage of a last step without a reward; of an agent that prepares
    none, what its critic gives.
    """
    if unprepared(agent):
        critic = network((Dense(16), Dense(1, relu=False)), agent.network.obs)
        return np.asarray(jax.vmap(critic.apply, (None, 0, None))(state.params.critic, obs, None))[:, 0]
    zero = jnp.zeros(obs.shape[0])
    whole = jnp.zeros(obs.shape[0], jnp.int32)
    still = own(agent, state, Transition(obs, whole, zero, zero == 0, zero != 0, obs, zero, whole))
    alone = jax.tree.map(lambda x: x[:, None], still)
    return -np.asarray(jax.vmap(lambda one: agent.prepare(state, one))(alone).advantage)[:, 0]


def test_advantages_are_those_of_gae():
    """Schulman et al. 2016, equation 16, step by step; truncated steps bootstrap, terminated ones do not."""
    agent, data = made("ppo"), lane()
    state = stirred(agent)
    extra = agent.prepare(state, data)
    now, then = values(agent, state, data.obs), values(agent, state, data.next_obs)
    gamma, lambda_ = HYPER.gamma, HYPER.gae_lambda
    advantage, later = np.zeros(12), 0.0
    for t in reversed(range(12)):
        delta = data.reward[t] + gamma * then[t] * (not data.terminated[t]) - now[t]
        ended = data.terminated[t] or data.truncated[t]
        later = delta + (0.0 if ended or t == 11 else gamma * lambda_ * later)
        advantage[t] = later
    np.testing.assert_allclose(extra.advantage, advantage, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(extra.target, advantage + now, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(extra.weight, 1)


def test_the_loss_is_that_of_the_paper():
    """Schulman et al. 2017, equations 7 and 9, in NumPy."""
    agent, data = made("ppo"), lane()
    state = stirred(agent)
    state = state._replace(hyper=state.hyper._replace(ent_coef=jnp.float32(0.03)))
    batch = batch_of(agent, state, data)
    _, info = agent.grad(state, batch, KEY)
    policy = agent.policy(state)
    dist = agent.dist(policy, data.obs[0], KEY)
    probs = np.stack([np.asarray(agent.dist(policy, obs, KEY).probs()) for obs in data.obs])
    ratio = probs[np.arange(12), data.action] / np.exp(data.log_prob)
    a = np.asarray(batch.extra.advantage)[:, 0]
    a = (a - a.mean()) / (a.std() + 1e-8)
    gain = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
    value = 0.5 * (values(agent, state, data.obs) - np.asarray(batch.extra.target)[:, 0]) ** 2
    entropy = -(probs * np.log(probs)).sum(-1)
    assert type(dist).__name__ == "Categorical"
    np.testing.assert_allclose(info.metrics["loss"], (0.5 * value - gain - 0.03 * entropy).mean(), rtol=1e-4)
    np.testing.assert_allclose(info.metrics["entropy"], entropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(info.metrics["clip_fraction"], (abs(ratio - 1) > 0.2).mean(), rtol=1e-5)
    np.testing.assert_allclose(info.metrics["approx_kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-3)


def test_without_a_step_taken_ppo_climbs_the_plain_policy_gradient():
    """The derivative of the ratio is that of the log-probability where the two policies are one."""
    clipped, plain = made("ppo", normalize_advantage=False), made("a2c")
    state = stirred(clipped)
    data = own(clipped, state, lane())
    grads = [agent.grad(state, batch_of(agent, state, data), KEY)[0] for agent in (clipped, plain)]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_ratios_that_are_clipped_teach_the_actor_nothing():
    agent, data = made("ppo", normalize_advantage=False), lane()
    state = stirred(agent)
    batch = batch_of(agent, state, own(agent, state, data)._replace(log_prob=jnp.full(12, -9.0)))
    batch = batch._replace(extra=batch.extra._replace(advantage=jnp.abs(batch.extra.advantage) + 0.1))
    grads, info = agent.grad(state, batch, KEY)
    assert info.metrics["clip_fraction"] == 1
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads.actor))
    assert any((np.asarray(g) != 0).any() for g in jax.tree.leaves(grads.critic))


def test_impala_sums_what_a2c_averages_and_corrects():
    summed, mean, plain = made("impala"), made("impala", sum_loss=False), made("a2c")
    state = stirred(summed)
    data = own(summed, state, lane())
    grads = [agent.grad(state, batch_of(agent, state, data), KEY)[0] for agent in (summed, mean, plain)]
    for a, b, c in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, 12 * b, rtol=1e-4, atol=1e-5)
        # on its own data V-trace with c and rho of 1 is the lambda-return
        np.testing.assert_allclose(b, c, rtol=1e-3, atol=1e-5)
    off = lane()
    sizes = [agent.grad(state, batch_of(agent, state, off), KEY)[1].priority for agent in (summed, plain)]
    assert abs(sizes[0] - sizes[1]) > 0.1  # of their advantages


@pytest.mark.parametrize("reduce", [jnp.sum, jnp.mean])
def test_a_rollout_that_is_looked_at_once_teaches_what_it_does_when_it_is_prepared(reduce):
    """Episodes are cut and end within; each rollout bootstraps from its own last observation."""
    rollouts = [lane(seed, ends=0.3) for seed in range(3)]
    assert sum(data.truncated.sum() for data in rollouts) > 2
    options = {"surrogate": None, "corrector": STATE_VALUES["vtrace"], "normalize_advantage": False, "reduce": reduce}
    twice, once = (ppo.assembled(small("impala"), OBS, ACTIONS, **options, once=x) for x in (False, True))

    @jit
    def learn():
        state = stirred(twice)
        dealt = [batch_of(twice, state, data) for data in rollouts]
        steps, extra = jax.tree.map(lambda *x: jnp.concatenate(x), *((each.data, each.extra) for each in dealt))
        whole = jax.tree.map(lambda *x: jnp.stack(x), *rollouts)
        weight = jnp.array([1.0, 0.5, 2.0])
        wanted = twice.grad(state, Batch(steps, jnp.repeat(weight, 12), jnp.arange(36), extra), KEY)
        return wanted, once.grad(state, Batch(whole, weight, jnp.arange(3)), KEY)

    (wanted, info), (got, seen) = learn()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for name in seen.metrics:
        np.testing.assert_allclose(seen.metrics[name], info.metrics[name], rtol=1e-4)
    np.testing.assert_allclose(seen.priority, info.priority.reshape(3, 12).mean(1), rtol=1e-4)


def test_the_weight_of_a_trajectory():
    """Liang et al. 2021: the product of ratios to the end of the episode, capped softly; 1 on own data."""
    r = np.random.default_rng(0)
    log_ratio = r.normal(0, 0.7, 9).astype(np.float32)
    ended = np.array([0, 0, 1, 0, 0, 0, 1, 0, 0], bool)
    zero = jnp.zeros(9)
    trace = Trace(zero, zero, jnp.asarray(ended), zero, zero, jnp.asarray(log_ratio))
    expected = []
    for t in range(9):
        end = next((k for k in range(t, 9) if ended[k]), 8)
        product = np.exp(log_ratio[t : end + 1].sum())
        expected.append(min(product, 0.8) + max(0.0, (product - 0.8) / product))
    weight = np.asarray(trajectory_weight(trace))
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert weight.max() < 1.8
    np.testing.assert_allclose(trajectory_weight(trace._replace(log_ratio=zero)), 1, rtol=1e-6)


def test_the_weight_scales_policy_and_value_but_not_entropy():
    agent, data = made("ptr-ppo"), lane()
    state = stirred(agent)
    batch = batch_of(agent, state, data)
    assert np.ptp(batch.extra.weight) > 0.1
    none = batch._replace(extra=batch.extra._replace(weight=jnp.zeros((12, 1))))
    grads, _ = agent.grad(state, none, KEY)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))
    state = state._replace(hyper=state.hyper._replace(ent_coef=jnp.float32(0.1)))
    grads, _ = agent.grad(state, none, KEY)
    assert any((np.asarray(g) != 0).any() for g in jax.tree.leaves(grads.actor))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads.critic))


@pytest.mark.parametrize(
    ("kind", "size"),
    [("max", 3.0), ("mean", 1.5), ("reward", np.log1p(np.exp(-2.0)))],
)
def test_priorities(kind, size):
    data = lane(time=4)._replace(reward=jnp.array([1.0, -4.0, 0.5, 0.5]))
    extra = Extra(jnp.array([1.0, -3.0, 2.0, 0.0]), jnp.zeros(4), jnp.ones(4))
    np.testing.assert_allclose(prioritised(kind)(data, extra), (size + 0.01) ** 0.7, rtol=1e-5)


def test_the_exponent_of_priorities():
    data, extra = lane(time=2), Extra(jnp.array([1.0, -3.0]), jnp.zeros(2), jnp.ones(2))
    assert prioritised("max", 0.0)(data, extra) == 1  # uniform
    np.testing.assert_allclose(prioritised("max", 2.0)(data, extra), 3.01**2, rtol=1e-5)


def test_a_one_step_value_target_leaves_the_advantage_alone():
    data = lane()
    agent, other = made("ptr-ppo", value_target="one-step"), made("ptr-ppo")
    state = stirred(agent)
    short = state._replace(hyper=state.hyper._replace(gae_lambda=jnp.float32(0)))
    got = agent.prepare(state, data)
    np.testing.assert_allclose(got.target, other.prepare(short, data).target, rtol=1e-5)
    np.testing.assert_array_equal(got.advantage, other.prepare(state, data).advantage)
    assert (got.target != other.prepare(state, data).target).any()


def test_a_ratio_to_the_latest_policy_begins_at_one():
    """Whoever acted; to the one that acted it does not."""
    data = lane()
    for ratio, near in (("latest", True), ("behaviour", False)):
        agent = made("ptr-ppo", ratio=ratio)
        state = stirred(agent)
        metrics = agent.grad(state, batch_of(agent, state, data), KEY)[1].metrics
        assert (abs(metrics["approx_kl"]) < 1e-6) == near


def test_moments_are_those_of_all_that_was_seen():
    r = np.random.default_rng(0)
    parts = [r.normal(3, 2, (n, 4)).astype(np.float32) for n in (1, 7, 30)]
    moments = Normaliser.start((4,))
    for part in parts:
        moments = moments.seen(jnp.asarray(part))
    everything = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-3)
    np.testing.assert_allclose(moments.var, everything.var(0), rtol=1e-3)


def test_normalised_observations_are_folded_into_the_first_layer():
    """The actor's plain network on raw observations is the agent's own on normalised ones."""
    agent, plain = made("ppo", normalize_obs=True), made("ppo")
    data = jax.tree.map(lambda x: x[:, None], lane()._replace(obs=lane().obs * 7 + 5))
    state = agent.observe(stirred(agent), data, 0)
    assert abs(state.obs.mean - 5).max() < 3
    normal = (data.obs[:, 0] - state.obs.mean[None]) / jnp.sqrt(state.obs.var)[None]
    raw = jax.vmap(lambda o: agent.dist(agent.policy(state), o, KEY).logits)(data.obs[:, 0])
    bare = plain.init(KEY, HYPER)._replace(params=state.params)
    expected = jax.vmap(lambda o: plain.dist(plain.policy(bare), o, KEY).logits)(normal)
    np.testing.assert_allclose(raw, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(values(agent, state, data.obs[:, 0]), values(plain, bare, normal), rtol=1e-3, atol=1e-4)


def test_rewards_are_scaled_by_the_discounted_return():
    agent = made("ppo", normalize_reward=True)
    state = agent.init(KEY, HYPER)
    rolls = [jax.tree.map(lambda *x: jnp.stack(x, 1), *(lane(4 * k + i) for i in range(4))) for k in range(3)]
    seen, running = [], np.zeros(4)
    for data in rolls:
        state = agent.observe(state, data, 0)
        for t in range(12):
            running = HYPER.gamma * running + data.reward[t]
            seen.append(running)
            running = np.where(data.terminated[t] | data.truncated[t], 0, running)
    np.testing.assert_allclose(state.rewards.moments.var, np.var(seen), rtol=1e-3)
    plain = made("ppo")
    bare = plain.init(KEY, HYPER)
    scaled = lane()._replace(reward=lane().reward / np.std(seen))
    np.testing.assert_allclose(
        agent.prepare(state, lane()).advantage, plain.prepare(bare, scaled).advantage, rtol=1e-3, atol=1e-4
    )


def test_actor_and_critic_share_what_looks_at_pixels():
    obs = Box((10, 10, 4), "uint8", 0, 1)
    agent = made("ppo", obs=obs)

    @jit
    def learn():
        state = agent.init(KEY, HYPER)
        seen = jax.random.bernoulli(KEY, 0.2, (12, 10, 10, 4)).astype(jnp.uint8)
        batch = batch_of(agent, state, lane()._replace(obs=seen, next_obs=seen))
        batch = batch._replace(extra=batch.extra._replace(advantage=jnp.zeros((12, 1))))
        return agent.grad(state, batch, KEY)[0], agent.dist(agent.policy(state), seen[0], KEY)

    grads, dist = learn()
    assert (np.asarray(grads.actor[0].w) != 0).any()  # the value alone moves the first convolution
    assert (np.asarray(grads.actor[-1].w) == 0).all()
    assert len(grads.critic) == 1
    assert dist.logits.shape == (2,)


@pytest.mark.parametrize("name", ["ppo", "impala", "pqn"])  # a mean, a sum, action values
def test_a_gradient_in_parts_changes_nothing(name, monkeypatch):
    found = []
    for most in (None, 5):
        for module in (ppo, pqn):
            monkeypatch.setattr(module, "at_once", lambda network, most=most: most)
        agent = made(name)
        state = agent.init(KEY, numbers(name))
        grads, info = agent.grad(state, batch_of(agent, state, lane()), KEY)
        found.append((grads, info.metrics, info.priority))
    whole, parts = found
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), whole, parts)


def test_continuous_actions_have_a_deviation_of_their_own():
    agent = made("ppo", Box((2,), "float32", (-1.0, -1.0), (1.0, 1.0)))
    state, data = stirred(agent), lane(dims=2)
    policy = agent.policy(state)
    assert policy.knobs["log_std"].shape == (2,)
    grads, _ = agent.grad(state, batch_of(agent, state, data), KEY)
    assert (np.asarray(grads.log_std) != 0).all()
    np.testing.assert_array_equal(
        agent.dist(policy, data.obs[0], KEY).mode(), agent.network.apply(policy.params, data.obs[0], KEY)
    )


def test_squashed_actions_keep_within_their_bounds():
    """On the sides of actor and learner alike, and the greedy knobs are enough to act."""
    agent = made("ppo", BOUNDED, squash=True)
    state, low, high = stirred(agent), np.float32(BOUNDED.low), np.float32(BOUNDED.high)
    policy = agent.policy(state)
    assert policy.knobs.keys() == ppo.greedy(BOUNDED).keys()
    assert HEADS[agent.head.__name__] is agent.head
    obs = 2 * np.random.default_rng(0).standard_normal((200, 4), np.float32)
    outputs = np.asarray(jax.vmap(agent.network.apply, (None, 0, None))(policy.params, obs, None))
    dist = agent.head(outputs, jax.device_get(policy.knobs))
    action = dist.sample(3 * np.random.default_rng(1).standard_normal((200, 2), np.float32))
    for each in (action, dist.mode(), agent.head(outputs, ppo.greedy(BOUNDED)).mode()):
        assert ((each >= low) & (each <= high)).all()
    np.testing.assert_allclose([action.min(0), action.max(0)], [low, high], atol=1e-3)
    ours = jax.vmap(lambda o, a: agent.dist(policy, o, KEY).log_prob(a))(obs, jnp.asarray(action))
    inside = (abs(action - (high + low) / 2) < 0.499 * (high - low)).all(-1)  # at a bound all hangs on the last bit
    assert 20 < inside.sum() < 180
    np.testing.assert_allclose(dist.log_prob(action)[inside], ours[inside], rtol=1e-4, atol=1e-3)


def test_a_squashed_policy_learns_by_its_density_and_entropy():
    """The loss with tanh, in NumPy, and a gradient for every weight of the actor."""
    agent = made("ppo", BOUNDED, squash=True, normalize_advantage=False)
    state = stirred(agent)
    state = state._replace(hyper=state.hyper._replace(ent_coef=jnp.float32(0.1)))
    plain = lane(dims=2)
    data = plain._replace(action=jnp.float32([0, 1.25])[None] + jnp.float32([1, 0.75])[None] * jnp.tanh(plain.action))
    batch = batch_of(agent, state, data)
    grads, info = agent.grad(state, batch, KEY)
    policy = agent.policy(state)
    outputs = np.asarray(jax.vmap(agent.network.apply, (None, 0, None))(policy.params, data.obs, None))
    dist = agent.head(outputs, jax.device_get(policy.knobs))
    np.testing.assert_allclose(info.metrics["entropy"], dist.entropy().mean(), rtol=1e-4)
    ratio = np.exp(dist.log_prob(np.asarray(data.action)) - np.asarray(data.log_prob))
    np.testing.assert_allclose(info.metrics["clip_fraction"], (abs(ratio - 1) > 0.2).mean(), rtol=1e-5)
    np.testing.assert_allclose(info.metrics["approx_kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-3)
    for slope in jax.tree.leaves((grads.actor[-1], grads.log_std)):
        assert (np.asarray(slope) != 0).all()


@pytest.mark.parametrize(("actions", "why"), [(ACTIONS, "these are discrete"), (Box((2,)), "these have none")])
def test_actions_that_cannot_be_squashed_are_refused(actions, why):
    with pytest.raises(ValueError, match=f"with squash=true it takes .*{why}; leave that out"):
        made("ppo", actions, squash=True)


def test_the_learning_rate_falls_if_asked_to():
    agent = made("a2c")
    state = agent.init(KEY, HYPER)
    grads = jax.tree.map(jnp.ones_like, state.params)

    def step(**hyper: float) -> np.ndarray:
        h = state.hyper._replace(**{name: jnp.float32(value) for name, value in hyper.items()})
        after = agent.apply(state._replace(hyper=h, version=jnp.int32(250)), grads)
        return np.asarray(after.params.actor[0].b - state.params.actor[0].b)

    half = {"steps_per_update": 2.0, "total_steps": 1000.0}
    np.testing.assert_allclose(step(anneal_lr=1.0, **half), step(anneal_lr=0.0, **half) / 2, rtol=1e-5)


def test_wide_layers_learn_more_slowly_if_asked_to():
    """By base over inputs: no layer of at most so many inputs, and no bias, whatever its size."""
    agents = [made("a2c", hidden=(16, 8), optimizer=kind, base_width=w) for kind in ("adam", "rmsprop") for w in (0, 8)]
    for usual, slow in (agents[:2], agents[2:]):
        state = usual.init(KEY, HYPER)
        assert bits(slow.init(KEY, HYPER)) == bits(state)
        grads = jax.tree.map(jnp.ones_like, state.params)
        moved, less = (
            jax.tree.map(jnp.subtract, agent.apply(state, grads).params, state.params).actor for agent in (usual, slow)
        )
        for layer, share in enumerate((1, 0.5, 1)):  # of 4, 16 and 8 inputs
            np.testing.assert_allclose(less[layer].w, share * moved[layer].w, rtol=1e-4)
            np.testing.assert_array_equal(less[layer].b, moved[layer].b)


PARTS = ("init", "policy", "dist", "grad", "apply", "observe", "prepare")


def programs(agent: Agent, hyper: Any, data: Transition) -> dict[str, str]:
    """The jaxpr of each part."""
    state = jax.eval_shape(agent.init, KEY, hyper)
    batch = jax.eval_shape(lambda state: batch_of(agent, state, data), state)
    rollout = jax.tree.map(lambda x: jnp.stack([x] * 4, 1), data)
    policy = jax.eval_shape(agent.policy, state)
    arguments = {
        "init": (KEY, hyper), "policy": (state,), "dist": (policy, jnp.zeros(4), KEY), "grad": (state, batch, KEY),
        "apply": (state, state.params), "observe": (state, rollout, 0), "prepare": (state, data),
    }  # fmt: skip
    return {part: str(jax.make_jaxpr(getattr(agent, part))(*arguments[part])) for part in PARTS}


STATE = {"init", "policy", "grad", "apply", "observe", "prepare"}  # all that see the state, when it gets another shape
SWITCHES = {  # of all recipes that have it: another choice, and the parts it may change and must
    "hidden": ((8,), set(PARTS)),
    "layer_norm": (False, set(PARTS)),
    "network": ("mlp", set()),
    "base_width": (2, {"apply"}),
    "num_envs": (8, set()),
    "n_steps": (4, set()),
    "n_epochs": (3, set()),
    "replay_epochs": (3, set()),
    "num_minibatches": (4, set()),
    "buffer_size": (64, set()),
    "priority": ("mean", set()),
    "priority_alpha": (0.5, set()),
    "value_target": ("one-step", {"prepare"}),
    "ratio": ("latest", {"prepare", "grad"}),
    "normalize_advantage": (None, {"grad"}),
    "normalize_obs": (True, STATE),
    "normalize_reward": (True, STATE),
    "optimizer": ("adam", STATE),
    "sum_loss": (False, {"grad"}),
    "workers": (3, set()),
    "draw_eps": (False, set()),
    "squash": (True, {"policy", "dist", "grad", "prepare"}),  # of continuous actions
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_every_choice_is_in_the_table(name):
    assert set(ROLLOUTS[name].static._fields) - {"algorithm"} <= SWITCHES.keys()  # that one is another agent


@pytest.mark.parametrize(
    ("name", "switch"), [(n, s) for n in ROLLOUTS for s in ROLLOUTS[n].static._fields if s in SWITCHES]
)
def test_a_switch_changes_its_parts_and_no_other(name, switch):
    value, expected = SWITCHES[switch]
    if value is None:
        value = not getattr(small(name), switch)
    actions, data = (BOUNDED, lane(dims=2)) if switch == "squash" else (ACTIONS, lane())
    agents = (made(name, actions), made(name, actions, **{switch: value}))
    before, after = (programs(agent, numbers(name), data) for agent in agents)
    if unprepared(agents[0]) and switch in ("normalize_advantage", "squash"):
        expected = expected ^ {"prepare"}  # which is a part of `grad`, unless advantages are compared with all others
    assert {part for part in PARTS if before[part] != after[part]} == expected


@cache
def small_run(name: str) -> tuple[Agent, compiled.Run]:
    recipe, static = ROLLOUTS[name], small(name)
    if name == "impala":
        static = static._replace(buffer_size=16)
    agent, env = made(name), cartpole()
    cadence = recipe.cadence(static)
    obs, zero, flag = jnp.zeros(4), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    memory = recipe.memory(static, example, lanes=static.num_envs, unroll=static.n_steps, streams=1)
    plan = compiled.Plan(static.num_envs, static.n_steps, cadence.updates, 0)
    agent = in_rotation(agent, cadence.learners) if cadence.learners else agent
    return agent, compiled.run(agent, env, memory, plan)


def names(recipes: dict[str, Recipe]) -> pytest.MarkDecorator:
    """Those of a3c take long, and its own file has quicker ones."""
    marked = [pytest.param(name, marks=pytest.mark.long) if name == "a3c" else name for name in recipes]
    return pytest.mark.parametrize("name", marked)


@names(ROLLOUTS)
def test_the_laws_of_a_run(name, tmp_path):
    """States keep their dtypes, seeds differ in every weight, a member is the run alone, resumed is never stopped."""
    agent, run = small_run(name)
    hyper, keys = numbers(name), jax.vmap(rng.key)(jnp.arange(2))
    carry = jax.jit(jax.vmap(run.init, (0, None)))(keys, hyper)
    for leaf in jax.tree.leaves(getattr(carry.state, "newest", carry.state).params):
        if leaf.ndim > 2:
            assert (np.asarray(leaf[0]) != np.asarray(leaf[1])).all()
    before = jax.eval_shape(agent.init, KEY, hyper)
    after, _ = jax.eval_shape(lambda s: update(agent, s, batch_of(agent, s, lane()), KEY), before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    advance = jax.jit(jax.vmap(run.advance, (0, None)))
    together = advance(carry, jnp.int32(20))[0]
    alone = advance(compiled.take(carry, slice(1, 2)), jnp.int32(20))[0]
    for a, b in zip(jax.tree.leaves(together.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=2e-3, atol=2e-4)
    half = advance(carry, jnp.int32(9))[0]
    checkpoint.save(tmp_path, 9, half)
    restored = checkpoint.restore(tmp_path, 9, jax.eval_shape(lambda: half))
    resumed = advance(restored, jnp.int32(11))[0]
    assert bits(resumed._replace(episodes=0)) == bits(together._replace(episodes=0))


@names(RECIPES)
@pytest.mark.parametrize("probe", ["reward after two steps", "reward of both", "cut off at once"])
def test_the_known_values_are_learned(name, probe):
    """V is that of the best action where there is a choice; it is looked up as `values` does."""
    env, known = PROBES[probe]
    recipe = RECIPES[name]
    static = small(name, num_envs=8)
    agent = recipe.assemble(static, env.obs, env.actions, STATE_VALUES[recipe.corrector])
    obs, zero, flag = jnp.zeros(1), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    memory = recipe.memory(static, example, lanes=8, unroll=static.n_steps, streams=1)
    updates, learners = recipe.cadence(static).updates, recipe.cadence(static).learners
    acting = in_rotation(agent, learners) if learners else agent
    run = compiled.run(acting, env, memory, compiled.Plan(8, static.n_steps, updates, 0))
    iterations = 300 if updates > 1 else 1500
    hyper = HYPER._replace(gamma=GAMMA, anneal_lr=1.0, total_steps=64.0 * iterations, steps_per_update=64.0 / updates)

    @jit
    def learn(key):
        carry, _ = run.advance(run.init(key, hyper), jnp.int32(iterations))
        return getattr(carry.state, "newest", carry.state)

    state = learn(rng.key(0))
    seen = jnp.array(list(known), jnp.float32)[:, None]
    best = [max(each) for each in known.values()]
    np.testing.assert_allclose(values(agent, state, seen), best, atol=0.08)


def test_log_std_init_is_where_exploration_begins():
    agent = made("ppo", Box((2,), low=-1.0, high=1.0))
    usual, narrow = (agent.init(rng.key(0), HYPER._replace(log_std_init=x)) for x in (0.0, -1.5))
    assert narrow.params.log_std.tolist() == [-1.5, -1.5]
    assert bits(narrow.params._replace(log_std=())) == bits(usual.params._replace(log_std=()))
    assert agent.policy(narrow).knobs["log_std"].tolist() == [-1.5, -1.5]


def test_means_beyond_their_bounds_are_charged_for():
    """By the square of the distance in half-widths of the space, and those within not at all."""
    agent, data = made("ppo", BOUNDED, normalize_advantage=False), lane(dims=2)
    state = stirred(agent)
    low, high = np.float32(BOUNDED.low), np.float32(BOUNDED.high)
    batch = batch_of(agent, state, data)
    mean = jax.vmap(agent.network.apply, (None, 0, None))(agent.policy(state).params, data.obs, None)
    excess = np.maximum(0, abs((np.asarray(mean) - (high + low) / 2) / ((high - low) / 2)) - 1)
    assert (excess > 0).any()
    assert (excess == 0).any()

    def at(coef: float, state: Any = state) -> tuple:
        return agent.grad(state._replace(hyper=state.hyper._replace(bounds_coef=jnp.float32(coef))), batch, KEY)

    (none, before), (some, after) = at(0.0), at(0.5)
    gap = after.metrics["loss"] - before.metrics["loss"]
    np.testing.assert_allclose(gap, 0.5 * (excess**2).sum(-1).mean(), rtol=1e-4)
    for part in ("policy_loss", "value_loss", "entropy"):
        assert after.metrics[part] == before.metrics[part]
    assert bits(some._replace(actor=())) == bits(none._replace(actor=()))
    assert bits(some.actor) != bits(none.actor)
    middle = (*state.params.actor[:-1], state.params.actor[-1]._replace(w=jnp.zeros((16, 2)), b=(low + high) / 2))
    within = state._replace(params=state.params._replace(actor=middle))
    assert bits(at(0.5, within)[0]) == bits(at(0.0, within)[0])


def test_what_has_no_bounds_has_nothing_to_charge_for():
    agent = made("ppo", Box((2,)))
    state, data = stirred(agent), lane(dims=2)
    charged = state._replace(hyper=state.hyper._replace(bounds_coef=jnp.float32(1.0)))
    batch = batch_of(agent, state, data)
    assert bits(agent.grad(state, batch, KEY)) == bits(agent.grad(charged, batch, KEY))
