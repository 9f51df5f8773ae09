"""Small agents, batches and runs that several tests share."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frugalrl import catalog, rng
from frugalrl.agents import d4pg, ddpg, sac, td3
from frugalrl.agents.dqn import Hyper, dqn
from frugalrl.envs.cartpole import cartpole
from frugalrl.memory import evenly, uniform
from frugalrl.networks import mlp, network
from frugalrl.runtime.compiled import Plan, Run, run
from frugalrl.types import Agent, Batch, Box, Discrete, Env, Transition

OBS, ACTIONS = Box((4,)), 2
HYPER = Hyper(learning_rate=1e-2, target_update_interval=12, total_steps=200, exploration_fraction=0.5)
TORQUE = Box((1,), low=-2.0, high=1.0)  # continuous actions; 0 is not their middle
MODULES = {"sac": sac, "td3": td3, "ddpg": ddpg, "d4pg": d4pg}
PLAN = Plan(num_envs=2, unroll=2, updates=1, warmup=10)


@cache
def small_dqn(**switches: Any) -> Agent:
    """A DQN with 16 hidden units for CartPole, compiled."""
    return compiled(dqn(network(mlp((16,), ACTIONS), OBS), **switches))


@cache
def small(name: str, continuous: bool = True, **static: Any) -> Agent:
    """Another agent as small, for actions like TORQUE or CartPole's."""
    module, actions = MODULES[name], TORQUE if continuous else Discrete(ACTIONS)
    return compiled(module.assemble(module.Static(hidden=(16,), **static), OBS, actions))


@cache
def small_family(name: str, **static: Any) -> Agent:
    """An agent of DQN's family as small as `small_dqn`, with its own switches."""
    recipe = catalog.recipe(name)
    return compiled(recipe.assemble(recipe.static._replace(hidden=(16,), **static), OBS, Discrete(ACTIONS)))


def compiled(agent: Agent) -> Agent:
    """The agent, each part compiled: operation by operation tests would be slow."""
    parts = ("init", "policy", "dist", "grad", "apply", "prepare")
    return agent._replace(**{name: jax.jit(getattr(agent, name)) for name in parts})


def pushed() -> Env:
    """CartPole whose cart is pushed by the sign of a continuous action."""
    env = cartpole()
    return env._replace(step=lambda s, a, key: env.step(s, (a[0] > 0).astype(jnp.int32), key), actions=TORQUE)


def small_run(agent: Agent, window: int = 1, plan: Plan = PLAN, continuous: bool = False, choice: Any = evenly) -> Run:
    """A run of `agent` on CartPole with a memory that is full, and turns over, after 50 iterations."""
    obs, zero, flag = jnp.zeros(4), jnp.float32(0), jnp.bool_(False)
    action = jnp.zeros(TORQUE.shape) if continuous else jnp.int32(0)
    example = Transition(obs, action, zero, flag, flag, obs, zero, jnp.int32(0))
    memory = uniform(example, 200, 32, lanes=plan.num_envs, unroll=plan.unroll, window=window, choice=choice)
    return run(agent, pushed() if continuous else cartpole(), memory, plan)


def start(runs: Run, seeds: int = 1, hyper: Any = HYPER) -> Any:
    """The carry [seeds, ...] of a run, warmed up."""
    keys = jax.vmap(rng.key)(jnp.arange(seeds))
    return jax.jit(jax.vmap(runs.init, (0, None)))(keys, hyper)


def random_batch(seed: int = 0, size: int = 32, window: int = 1, ends: float = 0.2, continuous: bool = False) -> Batch:
    """Transitions of no environment, each step ending an episode with probability `ends` in either way."""
    r = np.random.default_rng(seed)
    shape = (size, window)
    push = r.uniform(TORQUE.low, TORQUE.high, (*shape, 1)).astype(np.float32) if continuous else None
    data = Transition(
        obs=r.standard_normal((*shape, 4), np.float32),
        action=r.integers(0, ACTIONS, shape, np.int32) if push is None else push,
        reward=r.standard_normal(shape, np.float32),
        terminated=r.random(shape) < ends,
        truncated=r.random(shape) < ends,
        next_obs=r.standard_normal((*shape, 4), np.float32),
        log_prob=np.log(r.uniform(0.05, 1, shape)).astype(np.float32),
        version=np.zeros(shape, np.int32),
    )
    batch = Batch(data, np.ones(size, np.float32), np.arange(size, dtype=np.int32))
    return jax.tree.map(jnp.asarray, batch)


def random_state(agent: Agent, seed: int = 3, hyper: Any = HYPER) -> Any:
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
