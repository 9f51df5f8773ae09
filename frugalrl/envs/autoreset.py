"""What the JAX environments share: an episode that ends, or reaches the time limit, is followed by a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..branches import if_any
from ..types import Box, Env, Space, Step, Tree


class Episode(NamedTuple):
    """The state of an `Env` that `autoreset` made."""

    state: Tree  # of the task itself
    steps: jax.Array  # int32, taken since the episode began


def autoreset(
    start: Callable[[jax.Array], Tree],
    advance: Callable[[Tree, Tree], tuple[Tree, jax.Array, jax.Array]],
    observe: Callable[[Tree], Tree],
    obs: Box,
    actions: Space,
    time_limit: int | None,
    costly: bool = False,
) -> Env:
    """The `Env` of a task that knows neither time limit nor reset.

    `start` is key -> state, `advance` is (state, action) -> (state, float32 reward, bool terminated), `observe` is
    state -> observation. `advance` takes no key, so that a deterministic task does not pay for randomness it never
    uses; one with chance in it keeps a key in its state, or is given what chance brings together with the action.

    Truncation follows Gymnasium's TimeLimit: `truncated` is true at step `time_limit`, whether or not the task
    terminated there, and never if there is no limit. When either flag is set, `Step.next_obs` is the last observation
    of the old episode and `Step.obs` the first of the new one, which is drawn with the step's key.

    A start is drawn at every step, and mostly not used. With `costly` the copies of a vmap draw none in a step in which
    none of their episodes ends; the numbers are the same.
    """

    def begin(key: jax.Array) -> Episode:
        return Episode(start(key), jnp.int32(0))

    def renewed(over: jax.Array, key: jax.Array, old: Episode) -> Episode:
        if costly:
            return if_any(over, lambda key, old: begin(key), lambda key, old: old, key, old)
        return jax.tree.map(lambda x, y: jnp.where(over, x, y), begin(key), old)

    def reset(key: jax.Array) -> tuple[Episode, Tree]:
        episode = begin(key)
        return episode, observe(episode.state)

    def step(episode: Episode, action: Tree, key: jax.Array) -> tuple[Episode, Step]:
        state, reward, terminated = advance(episode.state, action)
        steps = episode.steps + 1
        truncated = jnp.bool_(False) if time_limit is None else steps >= time_limit
        episode = renewed(terminated | truncated, key, Episode(state, steps))
        return episode, Step(observe(episode.state), reward, terminated, truncated, observe(state))

    return Env(reset, step, obs, actions, time_limit)
