"""Greedy evaluation on held-out seeds, the same for every training seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .envs.make import EnvOptions, find, has_time_limit, make
from .errors import UsageError
from .types import Agent, Env

HELD_OUT = 1_000_003  # episode i of an evaluation is reset with this plus i; training draws its seeds elsewhere
SELECTION = 2_000_003  # the same of episodes that choose among members, so that those above stay held out of the choice
MAX_STEPS = 27_000  # of an episode: as long as ale-py lets Atari play (108,000 frames at four a step)


class Episodes(NamedTuple):
    returns: Any  # float [..., episodes]
    lengths: Any  # int [..., episodes]


def episode_cap(env_id: str, options: EnvOptions | None = None) -> int | None:
    """Steps after which an evaluation cuts an episode off: of an environment without a time limit, else None."""
    limited = has_time_limit(find(env_id)) or (options is not None and options.time_limit is not None)
    return None if limited else MAX_STEPS


def check_video(env_id: str, options: EnvOptions | None = None) -> None:
    """Raises UsageError if an environment draws no pictures, and what `make` raises."""
    env = make(env_id, options)
    modes = env.metadata.get("render_modes") or ()
    env.close()
    if "rgb_array" not in modes:
        raise UsageError(f"{env_id} draws no pictures (its metadata has no render mode rgb_array): leave --video out")


def on_gymnasium(
    act: Callable[[np.ndarray], np.ndarray], env_id: str, episodes: int, *, seed: int = HELD_OUT, parallel: int = 20,
    options: EnvOptions | None = None, obs_dtype: str = "float32", frames: list | None = None,
) -> Episodes:  # fmt: skip
    """Play `episodes` episodes, each on an environment of its own reset with seed, seed + 1, ...

    `act` takes observations [parallel, ...] and returns that many actions; environments whose episode is over repeat
    their last observation. Rewards are not clipped; an episode is cut off at `episode_cap`. If `frames` is a list, the
    first episode is rendered into it as RGB arrays. Raises what `make` raises.
    """
    cap = episode_cap(env_id, options) or np.inf
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    for first in range(0, episodes, parallel):
        group = range(first, min(first + parallel, episodes))
        video = frames is not None and first == 0
        envs = [make(env_id, options, render_mode="rgb_array" if video and i == 0 else None) for i in group]
        obs = np.stack([env.reset(seed=seed + i)[0] for i, env in zip(group, envs, strict=True)]).astype(obs_dtype)
        obs = np.concatenate([obs, np.zeros((parallel - len(envs), *obs.shape[1:]), obs.dtype)])
        alive = set(range(len(envs)))
        while alive:
            actions = np.asarray(act(obs))
            for k in sorted(alive):
                if video and k == 0 and frames is not None:
                    frames.append(envs[0].render())
                obs[k], reward, terminated, truncated, _ = envs[k].step(actions[k])
                returns[first + k] += float(reward)
                lengths[first + k] += 1
                if terminated or truncated or lengths[first + k] >= cap:
                    alive.discard(k)
        for env in envs:
            env.close()
    return Episodes(returns, lengths)


def on_twin(agent: Agent, env: Env, episodes: int) -> Callable[[Any, Any], Episodes]:
    """The pure function (policy, key) -> Episodes: `episodes` greedy episodes on a JAX environment, side by side.

    Without a time limit they are cut off after MAX_STEPS.
    """
    import jax
    import jax.numpy as jnp

    cap = MAX_STEPS if env.time_limit is None else env.time_limit

    def evaluate(policy, key) -> Episodes:
        env_state, obs = jax.vmap(env.reset)(jax.random.split(key, episodes))

        def play(c):
            env_state, obs, alive, ret, length, t = c
            dist = jax.vmap(lambda o: agent.dist(policy, o, key))(obs)
            keys = jax.random.split(jax.random.fold_in(key, t), episodes)
            env_state, step = jax.vmap(env.step)(env_state, dist.mode(), keys)
            ret = ret + jnp.where(alive, step.reward, 0.0)
            length = length + alive.astype(jnp.int32)
            alive = alive & ~(step.terminated | step.truncated) & (length < cap)
            return env_state, step.obs, alive, ret, length, t + 1

        zeros = jnp.zeros(episodes, jnp.int32)
        start = (env_state, obs, jnp.ones(episodes, jnp.bool_), jnp.zeros(episodes), zeros, jnp.int32(0))
        *_, ret, length, _ = jax.lax.while_loop(lambda c: c[2].any(), play, start)
        return Episodes(ret, length)

    return evaluate
