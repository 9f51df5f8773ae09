"""Small agents, batches and runs that several tests share."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frugalrl import rng
from frugalrl.agents.dqn import Hyper, dqn
from frugalrl.envs.cartpole import cartpole
from frugalrl.memory import uniform
from frugalrl.networks import mlp, network
from frugalrl.runtime.compiled import Plan, Run, run
from frugalrl.types import Agent, Batch, Box, Transition

OBS, ACTIONS = Box((4,)), 2
HYPER = Hyper(learning_rate=1e-2, target_update_interval=12, total_steps=200, exploration_fraction=0.5)
PLAN = Plan(num_envs=2, unroll=2, updates=1, warmup=10)


@cache
def small_dqn(**switches: Any) -> Agent:
    """A DQN with 16 hidden units for CartPole, each part compiled: operation by operation tests would be slow."""
    agent = dqn(network(mlp((16,), ACTIONS), OBS), **switches)
    parts = {name: jax.jit(getattr(agent, name)) for name in ("init", "policy", "dist", "grad", "apply")}
    return agent._replace(**parts)


def small_run(agent: Agent, window: int = 1, plan: Plan = PLAN) -> Run:
    """A run of `agent` on CartPole with a memory that is full, and turns over, after 50 iterations."""
    obs, zero, flag = jnp.zeros(4), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    memory = uniform(example, 200, 32, lanes=plan.num_envs, unroll=plan.unroll, window=window)
    return run(agent, cartpole(), memory, plan)


def start(runs: Run, seeds: int = 1) -> Any:
    """The carry [seeds, ...] of a run, warmed up."""
    keys = jax.vmap(rng.key)(jnp.arange(seeds))
    return jax.jit(jax.vmap(runs.init, (0, None)))(keys, HYPER)


def random_batch(seed: int = 0, size: int = 32, window: int = 1, ends: float = 0.2) -> Batch:
    """Transitions of no environment, each step ending an episode with probability `ends` in either way."""
    r = np.random.default_rng(seed)
    shape = (size, window)
    data = Transition(
        obs=r.standard_normal((*shape, 4), np.float32),
        action=r.integers(0, ACTIONS, shape, np.int32),
        reward=r.standard_normal(shape, np.float32),
        terminated=r.random(shape) < ends,
        truncated=r.random(shape) < ends,
        next_obs=r.standard_normal((*shape, 4), np.float32),
        log_prob=np.log(r.uniform(0.05, 1, shape)).astype(np.float32),
        version=np.zeros(shape, np.int32),
    )
    batch = Batch(data, np.ones(size, np.float32), np.arange(size, dtype=np.int32))
    return jax.tree.map(jnp.asarray, batch)


def random_state(agent: Agent, seed: int = 3, hyper: Hyper = HYPER) -> Any:
    """A state in which biases are not zero and the target network prefers other actions than the online one."""
    return _stir(agent.init(jax.random.key(seed), hyper), seed)


@jax.jit
def _stir(state: Any, seed: int) -> Any:
    leaves, kind = jax.tree.flatten((state.params, state.target))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params, target = kind.unflatten(moved)
    return state._replace(params=params, target=target)


def bits(tree: Any) -> list[bytes]:
    """Every leaf as dtype, shape and bytes: what equal "bit for bit" means. Keys count by their data."""

    def one(x: Any) -> bytes:
        if jax.dtypes.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = np.asarray(x)
        return f"{x.dtype}{x.shape}".encode() + x.tobytes()

    return [one(x) for x in jax.tree.leaves(tree)]
