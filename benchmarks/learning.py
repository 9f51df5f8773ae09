"""One iteration of learning from random observations, as any runtime has it: for benchmarks of what an update costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from frugalrl import jobs, rng
from frugalrl.config import Config
from frugalrl.runtime import compiled
from frugalrl.types import Agent

UNROLL = 64  # steps that a replay holds of each environment


class Learning(NamedTuple):
    """One member's."""

    init: Callable[[Any], Any]  # key -> state
    learn: Callable[[Any, Any], Any]  # (state, kept) -> state, after the updates of an iteration
    kept: Any  # contents of the memory, and the rollout that came last
    steps: int  # of the environment that an iteration goes with
    updates: int


def learning(chosen: Config, change: Callable[[Agent], Agent] = lambda agent: agent) -> Learning:
    """The parts of an iteration; `change` is a lever."""
    recipe, agent, static, hyper, card, cadence = jobs.records(chosen)
    agent, lanes, time = change(agent), static.num_envs, cadence.rollout or UNROLL
    memory = jobs.memory_of(recipe, static, card, cadence, lanes=lanes, unroll=time, streams=1)
    shape = (time + 1, lanes, *card.obs.shape)
    pixels = card.obs.dtype == "uint8"
    obs = jax.random.bits(rng.key(0), shape, jnp.uint8) if pixels else jax.random.normal(rng.key(0), shape)
    items = jax.tree.map(lambda x: jnp.zeros((time, lanes, *x.shape), x.dtype), jobs.example(card))
    items = items._replace(obs=obs[:-1], next_obs=obs[1:])
    kept = memory.add(memory.init(), items), items

    def learn(state, kept):
        contents, rollout = kept
        learned = compiled.learn(agent, memory, cadence.updates, state, contents, rng.key(2))[0]
        return agent.observe(learned, rollout, 0)

    steps = time * lanes if cadence.rollout else cadence.steps
    return Learning(lambda key: agent.init(key, hyper), learn, kept, steps, cadence.updates)


def iteration(chosen: Config, change: Callable[[Agent], Agent] = lambda agent: agent) -> tuple[Callable[[], Any], int]:
    """(a function that makes the updates of one iteration, the environment steps that they go with).

    `change` is a lever. The function is compiled, and called once, before it is returned: in `compiled` mapped over
    seeds, of which there is one, as every program is there. Each call goes on from the last: there are updates that
    only some do.
    """
    parts = learning(chosen, change)
    learn, state, kept = parts.learn, parts.init(rng.key(1)), parts.kept
    if chosen.runtime == "compiled":
        learn, (state, kept) = jax.vmap(learn), jax.tree.map(lambda x: x[None], (state, kept))
    learn = jax.jit(learn)

    def once() -> None:
        nonlocal state
        state = jax.block_until_ready(learn(state, kept))

    once()  # only now is it traced
    return once, parts.steps
