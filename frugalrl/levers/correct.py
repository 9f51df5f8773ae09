"""Correctors: how data of another policy becomes a weight."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..types import Agent, Batch

Corrector = Callable[[jax.Array], jax.Array]  # log-ratios [time] -> weight, a scalar


def none() -> Corrector:
    """No correction: a weight of one."""
    return lambda log_ratios: jnp.ones((), log_ratios.dtype)


def truncated(limit: float = 1.0) -> Corrector:
    """The product of the importance ratios, truncated from above (Ionides 2008)."""
    return lambda log_ratios: jnp.minimum(jnp.exp(jnp.sum(log_ratios)), limit)


def corrected(agent: Agent, corrector: Corrector) -> Agent:
    """The agent whose `grad` weights each sample by how far its behaviour was from the agent's own policy.

    The behaviour's log-probability is the one stored with the transition: that of the (compressed) policy that acted.
    Steps after the end of an episode do not count, nor do those before `agent.ratio_from`, whose action the target is
    given.
    """

    def grad(state, batch: Batch, key):
        data, policy = batch.data, agent.policy(state)

        def weight(obs, action, log_prob, ended):
            now = jax.vmap(lambda o, a: agent.dist(policy, o, key).log_prob(a))(obs, action)
            inside = (jnp.cumsum(ended) - ended.astype(jnp.int32)) == 0
            return corrector(jnp.where(inside, now - log_prob, 0.0)[agent.ratio_from :])

        weights = jax.vmap(weight)(data.obs, data.action, data.log_prob, data.terminated | data.truncated)
        return agent.grad(state, batch._replace(weight=batch.weight * jax.lax.stop_gradient(weights)), key)

    return agent._replace(grad=grad)
