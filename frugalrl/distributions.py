"""Distributions over actions: what a network's outputs mean. Acting, Corrector and Monitor use the same ones.

They work on NumPy arrays (in an actor process, which does not import JAX) and on JAX arrays (inside a training program)
alike, because randomness comes in as an argument: `draw` says which noise a sample needs, `sample` is a pure function
of it. Arrays may have any leading axes; the last axis of the parameters is the action's.

The walk of an observation to a gradient goes on in `memory.py`, `add`.
"""

from __future__ import annotations

import sys
from math import log, pi
from typing import Any, NamedTuple

import numpy as np

Array = Any


def _xp(x: Array):
    """The namespace of an array: JAX's if it is JAX's, else NumPy."""
    if isinstance(x, np.ndarray | np.generic | float | int):
        return np
    return sys.modules["jax"].numpy


def _at(values: Array, index: Array) -> Array:
    return _xp(values).take_along_axis(values, index[..., None], -1)[..., 0]


def draw(dist: Dist, rng: Array) -> Array:
    """The noise one call of `dist.sample` needs: from a `numpy.random.Generator` or, for JAX arrays, a JAX key."""
    shape = dist.noise_shape()
    if isinstance(rng, np.random.Generator):
        return (rng.random if dist.noise == "uniform" else rng.standard_normal)(shape, np.float32)
    random = sys.modules["jax"].random
    return (random.uniform if dist.noise == "uniform" else random.normal)(rng, shape)


def _inverse_cdf(probs: Array, u: Array) -> Array:
    """The index at which the cumulative probability passes u, uniform in [0, 1)."""
    xp = _xp(probs)
    below = (xp.cumsum(probs, -1)[..., :-1] <= u[..., None]).sum(-1)
    return below.astype(np.int32)


class EpsilonGreedy(NamedTuple):
    """The best value's action, or with probability `epsilon` any action, evenly."""

    values: Array  # [..., actions]
    epsilon: Array  # scalar
    noise = "uniform"

    def noise_shape(self) -> tuple[int, ...]:
        return self.values.shape[:-1]

    def probs(self) -> Array:
        xp, n = _xp(self.values), self.values.shape[-1]
        actions = xp.arange(n).reshape((1,) * (self.values.ndim - 1) + (n,))
        greedy = xp.argmax(self.values, -1)[..., None] == actions
        even = xp.asarray(self.epsilon, xp.float32) / np.float32(n)
        return xp.where(greedy, 1 - even * np.float32(n - 1), even)

    def sample(self, noise: Array) -> Array:
        return _inverse_cdf(self.probs(), noise)

    def log_prob(self, action: Array) -> Array:
        return _xp(self.values).log(_at(self.probs(), action))

    def mode(self) -> Array:
        return _xp(self.values).argmax(self.values, -1).astype(np.int32)

    def kl(self, other: EpsilonGreedy) -> Array:
        """KL(self || other) in nats; capped near 87 where `other` never takes an action that self does."""
        return _categorical_kl(self.probs(), other.probs())


def epsilon_greedy(outputs: Array, knobs: dict) -> EpsilonGreedy:
    """The `head` of agents whose network gives action values; knobs holds `epsilon`."""
    return EpsilonGreedy(outputs, knobs["epsilon"])


class Categorical(NamedTuple):
    """Probabilities are the softmax of the logits."""

    logits: Array  # [..., actions]
    noise = "uniform"

    def noise_shape(self) -> tuple[int, ...]:
        return self.logits.shape[:-1]

    def log_probs(self) -> Array:
        xp = _xp(self.logits)
        shifted = self.logits - self.logits.max(-1, keepdims=True)
        return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))

    def probs(self) -> Array:
        return _xp(self.logits).exp(self.log_probs())

    def sample(self, noise: Array) -> Array:
        return _inverse_cdf(self.probs(), noise)

    def log_prob(self, action: Array) -> Array:
        return _at(self.log_probs(), action)

    def mode(self) -> Array:
        return _xp(self.logits).argmax(self.logits, -1).astype(np.int32)

    def entropy(self) -> Array:
        return -(self.probs() * self.log_probs()).sum(-1)

    def kl(self, other: Categorical) -> Array:
        """KL(self || other) in nats."""
        return (self.probs() * (self.log_probs() - other.log_probs())).sum(-1)


def categorical(outputs: Array, knobs: dict) -> Categorical:
    """The `head` of agents whose network gives the logits of discrete actions."""
    return Categorical(outputs)


class Normal(NamedTuple):
    """Independent normals; log_prob, entropy and kl are summed over the last axis."""

    mean: Array  # [..., dims]
    log_std: Array
    noise = "normal"

    def noise_shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def sample(self, noise: Array) -> Array:
        return self.mean + _xp(self.mean).exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        # (x - mean) / std is squared, not (x - mean)^2 / std^2: the latter underflows in half precision
        z = (action - self.mean) / _xp(self.mean).exp(self.log_std)
        return (-0.5 * z * z - self.log_std - 0.5 * log(2 * pi)).sum(-1)

    def mode(self) -> Array:
        return self.mean

    def entropy(self) -> Array:
        return (self.log_std + 0.5 * log(2 * pi) + 0.5).sum(-1)

    def kl(self, other: Normal) -> Array:
        """KL(self || other) in nats."""
        xp = _xp(self.mean)
        ratio, gap = xp.exp(self.log_std - other.log_std), (self.mean - other.mean) / xp.exp(other.log_std)
        return (other.log_std - self.log_std + 0.5 * (ratio * ratio + gap * gap) - 0.5).sum(-1)


def gaussian(outputs: Array, knobs: dict) -> Normal:
    """The `head` of agents whose network gives the means of actions; knobs holds `log_std` [dims]."""
    return Normal(outputs, knobs["log_std"])


class TanhNormal(NamedTuple):
    """tanh of a Normal: actions in (-1, 1) (Haarnoja et al. 2018, arXiv 1801.01290, appendix C)."""

    mean: Array  # [..., dims], before tanh
    log_std: Array
    noise = "normal"

    def base(self) -> Normal:
        return Normal(self.mean, self.log_std)

    def noise_shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def sample(self, noise: Array) -> Array:
        return _xp(self.mean).tanh(self.base().sample(noise))

    def log_prob(self, action: Array) -> Array:
        xp = _xp(self.mean)
        limit = 1 - 1e-6  # an action of exactly 1 in float32 has no finite pre-image
        before = xp.arctanh(xp.clip(action, -limit, limit))
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x)), which does not cancel for large |x|
        jacobian = 2 * (log(2.0) - before - xp.logaddexp(-2 * before, xp.zeros_like(before)))
        return self.base().log_prob(before) - jacobian.sum(-1)

    def mode(self) -> Array:
        return _xp(self.mean).tanh(self.mean)

    def kl(self, other: TanhNormal) -> Array:
        """KL(self || other): tanh is one to one, so it is that of the normals."""
        return self.base().kl(other.base())


Dist = EpsilonGreedy | Categorical | Normal | TanhNormal


def _categorical_kl(p: Array, q: Array) -> Array:
    xp = _xp(p)
    tiny = np.float32(1e-38)
    ratio = xp.log(xp.maximum(p, tiny)) - xp.log(xp.maximum(q, tiny))
    return xp.where(p > 0, p * ratio, xp.zeros_like(p)).sum(-1)
