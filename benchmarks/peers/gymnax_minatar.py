"""How many steps a second MinAtar's games of Gymnax make with random actions on one core; prints one JSON line.

Run in the peers' own environment (see `setup.sh`), from the root of the project:

    JAX_PLATFORMS=cpu .venv-peers/jax/bin/python -m benchmarks.peers.gymnax_minatar '{"lanes": [128], "steps": 1000}'

Its actions do not stick, its episodes are cut off after 1000 steps (Freeway: 2500), and it has no Seaquest in this
version. What it shares with our benchmark is `rate`, which needs JAX only.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from time import process_time
from typing import Any

GAMES = ("Asterix", "Breakout", "Freeway", "SpaceInvaders")


def rate(reset: Callable, step: Callable, actions: int, lanes: int, steps: int) -> Callable[[], float]:
    """A function that makes `lanes` x `steps` steps and returns how many it made in a second of processor time.

    `reset` is keys -> (state, obs) and `step` is (state, actions, keys) -> (state, what it leaves), both of all lanes.
    One compiled scan, on one thread; what a step leaves is written out, as a training program would.
    """
    import jax
    import jax.numpy as jnp

    def one(carry, key):
        act, now = jax.random.split(key)
        action = jax.random.randint(act, (lanes,), 0, actions)
        return step(carry[0], action, jax.random.split(now, lanes)), None

    def play(key):
        keys = jax.random.split(key, lanes)
        state, _ = reset(keys)
        left = jax.eval_shape(step, state, jnp.zeros(lanes, jnp.int32), keys)[1]
        left = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), left)
        return jax.lax.scan(one, (state, left), jax.random.split(key, steps))[0]

    one_thread: Any = {"xla_cpu_multi_thread_eigen": False}
    key = jax.random.key(0)
    program = jax.jit(play).lower(key).compile(compiler_options=one_thread)
    jax.block_until_ready(program(key))

    def measured() -> float:
        start = process_time()
        jax.block_until_ready(program(key))
        return lanes * steps / (process_time() - start)

    return measured


def gymnax(game: str, lanes: int, steps: int) -> Callable[[], float]:
    """The same of a game of Gymnax, with the actions that do something in it."""
    import jax

    env, params = import_module("gymnax").make(f"{game}-MinAtar")

    def step(state, action, keys):
        obs, state, reward, done, _ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
        return state, (obs, reward, done)

    def reset(keys):
        obs, state = jax.vmap(env.reset, (0, None))(keys, params)
        return state, obs

    return rate(reset, step, env.num_actions, lanes, steps)


def main(lanes: list[int], steps: int) -> None:
    found = {f"{game} {n}": gymnax(game, n, steps // n)() for game in GAMES for n in lanes}
    print(json.dumps({"rates": found, "versions": {name: metadata.version(name) for name in ("jax", "gymnax")}}))


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main(**json.loads(sys.argv[1]))
