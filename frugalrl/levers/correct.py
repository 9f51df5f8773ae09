"""Correctors: how data of another policy becomes a target, or a weight.

An agent that learns every step of a trace from values along it takes a Corrector (`types.py`), which replaces its
lambda-return: `STATE_VALUES` and `ACTION_VALUES` are the tables. An agent that learns one n-step return of a window has
no such values, and takes a weight of that return instead: `corrected`.

In the equations rho is the ratio of the agent's own policy to the one that acted, and delta_t = r_t + gamma_t b_t - v_t
in the fields of a Trace. Traces are cut at the end of an episode and after the last step; what a truncated step
bootstraps from stays.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..losses import backward, lambda_return
from ..types import Agent, Batch, Corrector, Target, Trace

Weight = Callable[[jax.Array], jax.Array]  # log-ratios [time] -> weight, a scalar


def capped(log_ratio: jax.Array, limit: float) -> jax.Array:
    """The importance ratio, or product of ratios, truncated from above (Ionides 2008)."""
    return jnp.minimum(jnp.exp(log_ratio), limit)


def delta(trace: Trace) -> jax.Array:
    """The temporal-difference errors of one step, [time]."""
    return trace.reward + trace.discount * trace.bootstrap - trace.value


def following(x: jax.Array) -> jax.Array:
    """x_t+1 for each step, [time]; 0 after the last."""
    return jnp.append(x[1:], jnp.zeros_like(x[:1]))


def vtrace(rho_bar: float = 1.0, c_bar: float = 1.0, pg_rho_bar: float = 1.0) -> Corrector:
    """V-trace, for state values (Espeholt et al. 2018, equation 1; lambda as in their remark 2).

    v_t - V_t = min(rho_bar, rho_t) delta_t + gamma_t lambda min(c_bar, rho_t) (v_t+1 - V_t+1). A rho_bar that no ratio
    exceeds learns the values of the agent's own policy; a smaller one those of a policy between it and the one that
    acted (their equation 3). The advantage is min(pg_rho_bar, rho_t) (r_t + gamma_t v_t+1 - V_t), as in their section
    4.2, but with lambda v_t+1 + (1 - lambda) V_t+1 for v_t+1: data of the own policy then gives that of
    `lambda_return`.
    """

    def corrector(trace: Trace, lambda_) -> Target:
        error = delta(trace)
        decay = lambda_ * jnp.where(trace.ended, 0.0, trace.discount)
        change = backward(capped(trace.log_ratio, rho_bar) * error, capped(trace.log_ratio, c_bar) * decay)
        advantage = capped(trace.log_ratio, pg_rho_bar) * (error + decay * following(change))
        return jax.lax.stop_gradient(Target(trace.value + change, advantage))

    return corrector


def action_values(trace: Trace, keep: jax.Array) -> Target:
    """The target of action values whose trace keeps the share `keep` [time] of what comes with each action.

    G_t - Q_t = delta_t + gamma_t keep_t+1 (G_t+1 - Q_t+1) (Munos et al. 2016, equation 3). The first action is given,
    so nothing is asked about it.
    """
    change = backward(delta(trace), jnp.where(trace.ended, 0.0, trace.discount) * following(keep))
    return jax.lax.stop_gradient(Target(trace.value + change, change))


def retrace(c_bar: float = 1.0) -> Corrector:
    """Retrace, for action values: keeps lambda min(c_bar, rho_t) (Munos et al. 2016, section 3, where c_bar is 1)."""
    return lambda trace, lambda_: action_values(trace, lambda_ * capped(trace.log_ratio, c_bar))


def tree_backup() -> Corrector:
    """Tree-backup, for action values: keeps lambda pi(a_t | s_t) (Precup et al. 2000; Munos et al. 2016, section 3).

    It needs no probability of the policy that acted, but cuts the traces of a stochastic policy even on its own data.
    """
    return lambda trace, lambda_: action_values(trace, lambda_ * trace.prob)


def tis(limit: float = 1.0, ratio_from: int = 0) -> Corrector:
    """Truncated importance sampling: per decision (Precup et al. 2000), each product truncated (Ionides 2008).

    G_t - v_t = sum_k (product of lambda gamma from t to t+k-1) min(limit, rho_t+f ... rho_t+k) delta_t+k, where f is
    `ratio_from`, as in Agent: 0 for state values, 1 for action values. A limit that binds biases state values. A
    truncated product may fall below the limit later, so this is no recursion, and takes time * time operations.
    """

    def corrector(trace: Trace, lambda_) -> Target:
        step = jnp.arange(trace.reward.shape[0], dtype=jnp.int32)
        episode = jnp.cumsum(trace.ended) - trace.ended.astype(jnp.int32)
        error = delta(trace)

        def change(start):
            inside = (step >= start) & (episode == episode[start])
            log_ratio = jnp.where(inside & (step >= start + ratio_from), trace.log_ratio, 0.0)
            decay = jnp.where(inside & (step > start), lambda_ * jnp.roll(trace.discount, 1), 1.0)
            weight = jnp.cumprod(decay) * capped(jnp.cumsum(log_ratio), limit)
            return jnp.sum(jnp.where(inside, weight * error, 0.0))

        total = jax.vmap(change)(step)
        return jax.lax.stop_gradient(Target(trace.value + total, total))

    return corrector


STATE_VALUES: dict[str, Corrector] = {"none": lambda_return, "tis": tis(), "vtrace": vtrace()}
ACTION_VALUES: dict[str, Corrector] = {
    "none": lambda_return,
    "tis": tis(ratio_from=1),
    "retrace": retrace(),
    "tree-backup": tree_backup(),
}


def none() -> Weight:
    """No correction: a weight of one."""
    return lambda log_ratios: jnp.ones((), log_ratios.dtype)


def truncated(limit: float = 1.0) -> Weight:
    """The product of the importance ratios, truncated from above (Ionides 2008)."""
    return lambda log_ratios: capped(jnp.sum(log_ratios), limit)


def corrected(agent: Agent, weight: Weight) -> Agent:
    """The agent whose `grad` weights each sample by how far its behaviour was from the agent's own policy.

    The behaviour's log-probability is the one stored with the transition: that of the (compressed) policy that acted.
    Steps after the end of an episode do not count, nor do those before `agent.ratio_from`, whose action the target is
    given.
    """

    def grad(state, batch: Batch, key):
        data, policy = batch.data, agent.policy(state)

        def one(obs, action, log_prob, ended):
            now = jax.vmap(lambda o, a: agent.dist(policy, o, key).log_prob(a))(obs, action)
            inside = (jnp.cumsum(ended) - ended.astype(jnp.int32)) == 0
            return weight(jnp.where(inside, now - log_prob, 0.0)[agent.ratio_from :])

        weights = jax.vmap(one)(data.obs, data.action, data.log_prob, data.terminated | data.truncated)
        return agent.grad(state, batch._replace(weight=batch.weight * jax.lax.stop_gradient(weights)), key)

    return agent._replace(grad=grad)
