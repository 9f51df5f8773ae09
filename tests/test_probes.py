"""DQN learns the known action values of environments in which little can hide."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import GAMMA, PROBES

from frugalrl import rng
from frugalrl.agents.dqn import Hyper, Static, assemble
from frugalrl.levers.correct import corrected, truncated
from frugalrl.memory import uniform
from frugalrl.runtime.compiled import Plan, run
from frugalrl.types import Transition

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
