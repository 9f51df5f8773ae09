"""Agents learn the known action values of environments in which little can hide."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import BOWL, GAMMA, PROBES

from frugalrl import catalog, rng
from frugalrl.agents import d4pg, ddpg, sac, td3
from frugalrl.agents.actor_critic import critic, unit
from frugalrl.agents.dqn import Hyper, Static, assemble
from frugalrl.levers.correct import corrected, truncated
from frugalrl.memory import uniform
from frugalrl.runtime.compiled import Plan, run
from frugalrl.types import Transition, best_policy

ITERATIONS = 1000
HYPER = Hyper(learning_rate=1e-2, gamma=GAMMA, target_update_interval=80, total_steps=4 * ITERATIONS)
VARIANTS = {"one step": Static(hidden=(16,)), "three steps, double": Static(hidden=(16,), n_step=3, double=True)}


CASES = [(name, "one step") for name in PROBES]
CASES += [(name, "three steps, double") for name in ("reward after two steps", "reward of both", "cut off at once")]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_dqn_learns_the_known_values(name, variant):
    env, values = PROBES[name]
    static, plan = VARIANTS[variant], Plan(num_envs=4, unroll=1, updates=1, warmup=30)
    agent = assemble(static, env.obs, env.actions)
    if static.n_step > 1:
        agent = corrected(agent, truncated())
    obs, zero, flag = jnp.zeros(1), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    runs = run(agent, env, uniform(example, 1000, 32, lanes=4, unroll=1, window=static.n_step), plan)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it is the compiler that takes time here
    def learn(key):
        carry, _ = runs.advance(runs.init(key, HYPER), jnp.int32(ITERATIONS))
        policy = agent.policy(carry.state)
        seen = jnp.array(list(values), jnp.float32)[:, None]
        return jax.vmap(lambda x: agent.dist(policy, x, key).values)(seen)

    np.testing.assert_allclose(learn(rng.key(0)), list(values.values()), atol=0.05)


SLOW = pytest.mark.long
FAMILY = {
    ("rainbow", "reward of both"): (), ("rainbow", "reward after two steps"): SLOW,
    ("rainbow", "cut off at once"): SLOW,
    ("qrdqn", "cut off at once"): SLOW, ("qrdqn", "reward of both"): SLOW,
    ("iqn", "reward of both"): (), ("iqn", "reward after two steps"): SLOW, ("miqn", "cut off at once"): SLOW,
    ("mdqn", "reward after two steps"): SLOW, ("mdqn", "reward of both"): (), ("miqn", "reward of both"): SLOW,
}  # fmt: skip


@pytest.mark.parametrize(("name", "probe"), [pytest.param(*case, marks=marks) for case, marks in FAMILY.items()])
def test_dqns_family_learns_the_known_values(name, probe):
    recipe, (env, values) = catalog.recipe(name), PROBES[probe]
    static = recipe.static._replace(hidden=(16,), buffer_size=1000, batch_size=32)
    agent = recipe.assemble(static, env.obs, env.actions)
    obs, zero, flag = jnp.zeros(1), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    runs = run(agent, env, recipe.memory(static, example, lanes=4, unroll=1), Plan(4, 1, 1, 30))
    state = learned(runs, ITERATIONS, rng.key(0), HYPER._replace(v_min=-3.0, v_max=3.0))
    policy, seen = best_policy(agent, state), jnp.array(list(values), jnp.float32)[:, None]
    found = jax.vmap(lambda x: agent.dist(policy, x, None).values)(seen)
    expected = np.array(list(values.values()))
    if static.munchausen:  # the log-probability of the worse action, here all of the gap, is clipped to -1
        expected = np.where(expected < expected.max(-1, keepdims=True), expected - HYPER.munchausen_alpha, expected)
    np.testing.assert_allclose(found, expected, atol=0.1)


AGENTS = {  # with next to no temperature, so that the values are those of returns alone
    "sac": (sac, {"ent_coef": 1e-3}, {"auto_ent_coef": False}),
    "td3": (td3, {"action_noise": 0.3, "target_policy_noise": 0.02}, {}),
    "ddpg": (ddpg, {"action_noise": 0.3}, {}),
    "d4pg": (d4pg, {"action_noise": 0.3, "v_min": -9.0, "v_max": 3.0}, {"atoms": 25, "n_step": 1}),
}


@partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def learned(runs, iterations, key, hyper):
    return runs.advance(runs.init(key, hyper), jnp.int32(iterations))[0].state


@pytest.mark.parametrize("name", ["td3", *(pytest.param(name, marks=SLOW) for name in ("sac", "ddpg", "d4pg"))])
def test_continuous_agents_learn_the_best_action_and_its_value(name):
    module, hyper, static = AGENTS[name]
    static = module.Static(hidden=(32,), **static)
    agent = module.assemble(static, BOWL.obs, BOWL.actions)
    obs, zero, flag = jnp.zeros(1), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.zeros(1), zero, flag, flag, obs, zero, jnp.int32(0))
    runs = run(agent, BOWL, uniform(example, 10_000, 64, lanes=8, unroll=1), Plan(8, 1, 1, 50))
    hyper = module.Hyper(learning_rate=3e-3, gamma=GAMMA, tau=0.05, **hyper)
    state = learned(runs, 3000, rng.key(0), hyper)
    for x in (-1.0, 1.0):
        seen = jnp.full(1, x)
        action = agent.dist(agent.policy(state), seen, None).mode()
        np.testing.assert_allclose(action, 0.3 * x, atol=0.1)
        for a, value in ((action, 2.0), (action - 0.5, 1.75)):
            np.testing.assert_allclose(judged(name, static, state, seen, a), value, atol=0.15)


def judged(name, static, state, obs, action):
    """The value that the first critic of an agent sees in an action."""
    params, low, high = state.params.critic, np.float32([-2]), np.float32([1])
    at = jnp.concatenate([obs, unit(action, low, high)])
    if name != "d4pg":
        return critic(static.hidden, BOWL.obs, 1).apply(jax.tree.map(lambda x: x[0], params), at)[0]
    probs = jax.nn.softmax(critic(static.hidden, BOWL.obs, 1, static.atoms).apply(params, at))
    return probs @ jnp.linspace(-9.0, 3.0, static.atoms)


DISCRETE = ("reward of both", *(pytest.param(p, marks=SLOW) for p in ("reward after two steps", "cut off at once")))


@pytest.mark.parametrize("probe", DISCRETE)
def test_discrete_sac_learns_the_known_values(probe):
    env, values = PROBES[probe]
    static = sac.Static(hidden=(16,), auto_ent_coef=False)
    agent = sac.assemble(static, env.obs, env.actions)
    obs, zero, flag = jnp.zeros(1), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    runs = run(agent, env, uniform(example, 1000, 32, lanes=4, unroll=1), Plan(4, 1, 1, 30))
    # warm enough that the worse action is tried, so cool that its entropy is worth little
    hyper = sac.Hyper(learning_rate=1e-2, gamma=GAMMA, tau=0.05, ent_coef=0.02)
    state = learned(runs, ITERATIONS, rng.key(0), hyper)
    judge = critic(static.hidden, env.obs, 0, env.actions.n)
    for x, expected in values.items():
        found = jax.vmap(judge.apply, (0, None))(state.params.critic, jnp.full(1, x))
        best = int(np.argmax(expected))
        np.testing.assert_allclose(found[:, best], expected[best], atol=0.1)
        assert agent.dist(agent.policy(state), jnp.full(1, x), None).probs()[best] > 0.95
