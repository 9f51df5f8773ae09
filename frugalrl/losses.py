"""Targets and losses, one equation on one sample; the caller maps them over a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .branches import if_any
from .types import Target, Trace, Tree


class NStep(NamedTuple):
    reward: jax.Array  # scalar, discounted sum of rewards up to the bootstrap
    discount: jax.Array  # scalar, what multiplies the bootstrap value; 0 after a termination
    last: jax.Array  # int32, index of the step whose next_obs is bootstrapped from


def n_step(rewards: jax.Array, terminated: jax.Array, truncated: jax.Array, gamma: jax.Array) -> NStep:
    """The n-step return of a window that stops at the first episode end (Sutton 1988; Hessel et al. 2018, equation 2).

    Args: rewards float32 [n]; terminated, truncated bool [n]; gamma scalar. A termination ends the return; a truncation
    also stops it, but is bootstrapped from.
    """
    ended = terminated | truncated
    before = jnp.cumsum(ended) - ended.astype(jnp.int32)  # ends strictly before each step
    alive = before == 0
    steps = jnp.arange(rewards.shape[0], dtype=jnp.int32)
    last = jnp.max(jnp.where(alive, steps, 0))
    powers = gamma ** steps.astype(rewards.dtype)
    reward = jnp.sum(jnp.where(alive, powers * rewards, 0.0))
    discount = gamma ** (last + 1).astype(rewards.dtype)
    return NStep(reward, jnp.where(terminated[last], 0.0, discount), last)


def backward(delta: jax.Array, decay: jax.Array) -> jax.Array:
    """The sums delta_t + decay_t (delta_t+1 + decay_t+1 (...)) to the last step, each argument [time]."""

    def step(later, now):
        total = now[0] + now[1] * later
        return total, total

    return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]


def lambda_return(trace: Trace, lambda_: float | jax.Array) -> Target:
    """The lambda-return, for data of the agent's own policy: a Corrector that corrects nothing.

    G_t = r_t + gamma_t ((1 - lambda) b_t + lambda G_t+1), where b bootstraps; an ended step, and the last one, has only
    b. With state values it is TD(lambda) (Sutton 1988), and the advantage G - V is the generalised one of Schulman et
    al. 2016, equation 16. With action values it is Peng's Q(lambda) (Peng and Williams 1996); lambda 1 is the n-step
    return.
    """
    mix = jnp.where(trace.ended, 0.0, lambda_).at[-1].set(0.0)
    bootstrap = trace.discount * (1 - mix) * trace.bootstrap
    target = jax.lax.stop_gradient(backward(trace.reward + bootstrap, trace.discount * mix))
    return Target(target, target - jax.lax.stop_gradient(trace.value))


def before_and_after(
    apply: Callable[[Tree, Any], Tree],
    params: Tree,
    obs: Any,
    next_obs: Any,
    truncated: jax.Array,
    at_once: int | None = None,
) -> tuple[Tree, Tree]:
    """What a network gives for the observation of each step of a rollout [time, ...], and for the one that follows.

    `apply` is of (params, one observation). What follows is the next step's observation, so the network runs once for
    each, but for the last step and where an episode was `truncated`. Where it terminated, and a new one followed, the
    second result is that of the new one: nothing may be bootstrapped from it. Gradients are of the first result alone.
    If only so many observations fit `at_once`, the network takes one of each rollout at a time.
    """

    def each(params, obs):
        if at_once is not None:
            return jax.lax.map(partial(apply, params), obs)
        return jax.vmap(apply, (None, 0))(params, obs)

    values = each(params, jnp.concatenate([obs, next_obs[-1:]]))

    def mended(params, next_obs, cut, after):
        return jax.tree.map(
            lambda x, y: jnp.where(cut.reshape(-1, *(1,) * (y.ndim - 1)), x, y), each(params, next_obs), after
        )

    # the last step has what followed it already
    after = jax.lax.stop_gradient(jax.tree.map(lambda x: x[1:], values))
    given = jax.lax.stop_gradient(params), next_obs, truncated.at[-1].set(False), after
    mend = if_any(jnp.any(given[2]), mended, lambda *args: args[-1], *given)
    return jax.tree.map(lambda x: x[:-1], values), mend


def huber(error: jax.Array) -> jax.Array:
    """Quadratic up to 1, linear after (Huber 1964; Mnih et al. 2015 clip the error's derivative, which is this)."""
    size = jnp.abs(error)
    return jnp.where(size <= 1, 0.5 * error * error, size - 0.5)


def squared(error: jax.Array) -> jax.Array:
    """Half the squared error."""
    return 0.5 * error * error


@jax.custom_vjp
def quantile_huber(quantiles: jax.Array, fractions: jax.Array, target: jax.Array) -> jax.Array:
    """The quantile regression loss, its corner rounded within 1 of the target (Dabney et al. 2018, arXiv 1710.10044,
    equation 10).

    Args: quantiles float32 [n] and the fractions [n] that they are of; target float32 [m], samples or quantiles of the
    returns. The sum over the quantiles of the mean over the targets; only `quantiles` have a gradient. Loss and
    gradient are found in one loop over the targets: as arrays of n x m for each sample they took ten times as long.
    """
    return _quantile_huber(quantiles, fractions, target)[0]


def _quantile_huber(quantiles, fractions, target) -> tuple[jax.Array, jax.Array]:
    """(loss, its derivative by each quantile)."""

    def add(sums, aim):
        error = aim - quantiles
        slope = jnp.where(error < 0, 1 - fractions, fractions) * jnp.clip(error, -1.0, 1.0)
        loss, slopes = sums
        return (loss + slope * (error - 0.5 * jnp.clip(error, -1.0, 1.0)), slopes + slope), None

    zero = jnp.zeros_like(quantiles)
    (loss, slopes), _ = jax.lax.scan(add, (zero, zero), target, unroll=16)
    return jnp.sum(loss) / target.shape[0], -slopes / target.shape[0]


def _quantile_huber_backward(slopes: jax.Array, cotangent: jax.Array) -> tuple:
    return cotangent * slopes, jnp.zeros_like(slopes), None


quantile_huber.defvjp(_quantile_huber, _quantile_huber_backward)


def project(support: jax.Array, probs: jax.Array, onto: jax.Array) -> jax.Array:
    """Probabilities [atoms] at `support` [atoms] as probabilities at the evenly spaced `onto` [n].

    Each atom is clipped to the ends of `onto` and shared by its two neighbours, linearly (Bellemare et al. 2017, arXiv
    1707.06887, equation 7).
    """
    step = onto[1] - onto[0]

    def add(sums, atom):
        place, prob = atom
        return sums + prob * jnp.clip(1 - jnp.abs(place - onto) / step, 0.0, 1.0), None

    places = jnp.clip(support, onto[0], onto[-1])
    # a loop, because of a batch the matrix of all shares leaves the registers
    return jax.lax.scan(add, jnp.zeros_like(onto), (places, probs), unroll=16)[0]


class Soft(NamedTuple):
    """The softmax policy of action values."""

    probs: jax.Array  # [actions]
    log_probs: jax.Array  # [actions], times the temperature: so that they are in units of values


def soft(values: jax.Array, temperature: jax.Array) -> Soft:
    """The policy softmax(values / temperature), values [actions] (Vieillard et al. 2020, section 3)."""
    log_probs = jax.nn.log_softmax(values / temperature)
    return Soft(jnp.exp(log_probs), temperature * log_probs)


def munchausen_bonus(policy: Soft, action: jax.Array, alpha: jax.Array, clip: jax.Array) -> jax.Array:
    """What is added to the reward: alpha times the scaled log-probability of the action, no less than -clip of that
    (Vieillard et al. 2020, arXiv 2007.14430, equation 5 and section 3).
    """
    return alpha * jnp.maximum(policy.log_probs[action], -clip)
