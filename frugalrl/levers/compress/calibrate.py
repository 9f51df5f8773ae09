"""Ranges of a policy's activations, kept up while it learns: what int8 throughout, "int8-static", needs to know.

The ranges are part of the learner's state, so they are saved, mapped over seeds, and always of the weights they are
sent with.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...networks import Layers, Residual, network, weighted
from ...types import Agent, Box, Linear, Policy, Ranges, Transition
from .engines.shared import with_cast

SAMPLES = 128  # observations that a rollout is calibrated on, at most
SHARE = 8  # and at most one in so many: looking at them costs a small part of learning from all
SHRINK = 0.02  # of the way back to what was just seen, when that is narrower
_GOLDEN = (5**0.5 - 1) / 2


class Calibrated(NamedTuple):
    """The state of a calibrated agent."""

    inner: Any  # the agent's own
    ranges: Ranges  # of the policy's network

    @property
    def version(self) -> Any:
        """Learner updates so far, int32."""
        return self.inner.version


def begun(agent: Agent, inner: Any, key: Any) -> Calibrated:
    """The state of `calibrated(agent)` around the agent's own, with the ranges of random observations."""
    net = agent.network
    assert net.layers is not None
    return Calibrated(inner, ranges(net.layers, net.obs, agent.policy(inner).params, _random(net.obs, key)))


def calibrated(agent: Agent) -> Agent:
    """The agent whose policies end with the `Ranges` of their activations; it learns as before.

    `observe` runs the policy on an eighth of each rollout's observations, at most 128, spread over its steps and
    lanes. A range widens at once to what it sees, and narrows by a fiftieth of the difference, so that single
    observations are kept for some hundred rollouts and the ranges of earlier weights are forgotten. Before the first
    rollout they are those of random observations. Raises ValueError for a network without layers.
    """
    net = agent.network
    if net.layers is None:
        raise ValueError("int8-static needs a network that is made of layers, and this one is not")
    layers: Layers = net.layers

    def init(key, hyper) -> Calibrated:
        return begun(agent, agent.init(key, hyper), jax.random.fold_in(key, 1))

    def look(inner: Any, obs) -> Ranges:
        return ranges(layers, net.obs, agent.policy(inner).params, obs)

    def policy(state: Calibrated) -> Policy:
        inner = agent.policy(state.inner)
        return Policy((*inner.params, state.ranges), inner.knobs)

    def observe(state: Calibrated, rollout: Transition, stream: Any) -> Calibrated:
        inner = agent.observe(state.inner, rollout, stream)
        obs = rollout.obs.reshape(-1, *net.obs.shape)
        return Calibrated(inner, _followed(state.ranges, look(inner, obs[_spread(len(obs))])))

    return agent._replace(
        init=init,
        policy=policy,
        grad=lambda state, batch, key: agent.grad(state.inner, batch, key),
        apply=lambda state, grads: state._replace(inner=agent.apply(state.inner, grads)),
        observe=observe,
        prepare=lambda state, rollout: agent.prepare(state.inner, rollout),
        own=lambda state, worker: state._replace(inner=agent.own(state.inner, worker)),
    )


def ranges(layers: Layers, obs: Box, weights: tuple[Linear, ...], x) -> Ranges:
    """The Ranges of a network on observations `x` [n, *obs.shape]."""
    x = x.astype(jnp.float32)
    seen = [x, *_outputs(with_cast(layers, obs), iter(weights), x)]
    return Ranges(
        jnp.stack([jnp.minimum(jnp.min(each), 0.0) for each in seen]),
        jnp.stack([jnp.maximum(jnp.max(each), 0.0) for each in seen]),
    )


def _outputs(layers: Layers, weights: Iterator[Linear], x) -> Generator[Any, None, Any]:
    """What each layer makes of `x` [n, ...], in the order of `Ranges`; returns the last."""
    for layer in layers:
        if isinstance(layer, Residual):
            x = x + (yield from _outputs(layer.body, weights, x))
        else:
            shape = x.shape[1:]
            own = tuple(next(weights) for _ in weighted((layer,), shape))
            x = jax.vmap(network((layer,), Box(shape)).apply, (None, 0, None))(own, x, None)
        yield x
    return x


def _followed(old: Ranges, new: Ranges) -> Ranges:
    """Wider at once, narrower slowly."""
    return Ranges(
        jnp.minimum(new.low, old.low + SHRINK * (new.low - old.low)),
        jnp.maximum(new.high, old.high + SHRINK * (new.high - old.high)),
    )


def _spread(n: int) -> np.ndarray:
    """Which of `n` observations to look at: spread evenly, and in step with no number of lanes (golden ratio)."""
    count = max(1, min(SAMPLES, n // SHARE))
    return (np.arange(count) * _GOLDEN % 1 * n).astype(np.int32)


def _random(obs: Box, key) -> Any:
    """Some observations: evenly within their bounds, or normal where there are none."""
    shape = (SAMPLES, *obs.shape)
    if obs.dtype in ("uint8", "bool"):
        top = 256 if obs.dtype == "uint8" else 2
        return jax.random.randint(key, shape, 0, top)
    low, high = (np.broadcast_to(np.float32(x), obs.shape) for x in (obs.low, obs.high))
    bounded = np.isfinite(low) & np.isfinite(high)
    key_even, key_normal = jax.random.split(key)
    even = jax.random.uniform(key_even, shape)
    low, high = np.where(bounded, low, 0), np.where(bounded, high, 0)
    even = low[None] + even * (high - low)[None]
    return jnp.where(bounded[None], even, jax.random.normal(key_normal, shape))
