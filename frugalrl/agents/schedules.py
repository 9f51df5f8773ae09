"""What changes over training. Schedules count environment steps, a state the learner updates behind it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def steps(state: Any) -> jax.Array:
    """Environment steps that go with the updates so far."""
    return state.version.astype(jnp.float32) * state.hyper.steps_per_update


def epsilon(state: Any) -> jax.Array:
    """The chance of a random action: falls linearly over `exploration_fraction` of training (Mnih et al. 2015)."""
    h = state.hyper
    progress = jnp.clip(steps(state) / jnp.maximum(h.exploration_fraction * h.total_steps, 1.0), 0.0, 1.0)
    return h.exploration_initial_eps + progress * (h.exploration_final_eps - h.exploration_initial_eps)


def learning_rate(state: Any) -> jax.Array:
    """Falls linearly, at the end of training by the share `anneal_lr` of itself."""
    h = state.hyper
    return h.learning_rate * (1 - h.anneal_lr * jnp.clip(steps(state) / h.total_steps, 0.0, 1.0))


def importance_exponent(state: Any) -> jax.Array:
    """How much of the importance weights of prioritised samples counts: rises linearly to 1 at the end of training
    (Schaul et al. 2016, section 3.4).
    """
    h = state.hyper
    progress = jnp.clip(steps(state) / h.total_steps, 0.0, 1.0)
    return h.prioritized_replay_beta + progress * (1 - h.prioritized_replay_beta)


def target_due(state: Any, version: jax.Array) -> jax.Array:
    """Whether the target network moves after update `version`: once in `target_update_interval` environment steps."""
    h = state.hyper
    interval = jnp.maximum(jnp.round(h.target_update_interval / h.steps_per_update), 1.0).astype(jnp.int32)
    return version % interval == 0
