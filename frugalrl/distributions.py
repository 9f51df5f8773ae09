"""Distributions over actions: what a network's outputs mean. Acting, Corrector and Monitor use the same ones.

They work on NumPy arrays (in an actor process, which does not import JAX) and on JAX arrays (inside a training program)
alike, because randomness comes in as an argument: `draw` says which noise a sample needs, `sample` is a pure function
of it. Arrays may have any leading axes; the last axis of the parameters is the action's.

The walk of an observation to a gradient goes on in `memory.py`, `add`.
"""

from __future__ import annotations

import sys
from math import erfc, log, pi, sqrt
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


def distributional_greedy(outputs: Array, knobs: dict) -> EpsilonGreedy:
    """The `head` of agents whose network gives, for each action, logits of its returns (Bellemare et al. 2017).

    The returns lie evenly between `v_min` and `v_max`. knobs holds those, `epsilon`, and `actions` [actions], of which
    only the length is read. As in all heads knobs may have leading axes that go with those of the outputs, numbers then
    a last one of 1.
    """
    xp = _xp(outputs)
    logits = outputs.reshape(*outputs.shape[:-1], np.shape(knobs["actions"])[-1], -1)
    weights = xp.exp(logits - logits.max(-1, keepdims=True))
    rank = xp.arange(logits.shape[-1], dtype=np.float32) / np.float32(logits.shape[-1] - 1)
    mean = (weights @ rank) / weights.sum(-1)
    low, high = (xp.asarray(knobs[name], np.float32) for name in ("v_min", "v_max"))
    return EpsilonGreedy(low + (high - low) * mean, knobs["epsilon"])


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


def normal(outputs: Array, knobs: dict) -> Normal:
    """The `head` of agents whose network gives the means of actions; knobs holds `log_std` [dims]."""
    return Normal(outputs, knobs["log_std"])


# x and weights for which the weighted sum of f(x) is the mean of f under a standard normal (Gauss and Hermite)
NODES, WEIGHTS = (x.astype(np.float32) for x in np.polynomial.hermite_e.hermegauss(24))
WEIGHTS /= WEIGHTS.sum()


class TanhNormal(NamedTuple):
    """tanh of a Normal, stretched to (low, high) (Haarnoja et al. 2018, arXiv 1801.01290, appendix C)."""

    mean: Array  # [..., dims], before tanh
    log_std: Array
    low: Array = -1.0  # of the action: a number, or as `mean`
    high: Array = 1.0
    noise = "normal"

    def base(self) -> Normal:
        return Normal(self.mean, self.log_std)

    def noise_shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def _stretched(self, before: Array) -> Array:
        xp = _xp(self.mean)
        action = (self.high + self.low) / 2 + (self.high - self.low) / 2 * xp.tanh(before)
        return xp.clip(action, self.low, self.high)  # rounding must not lead out of the space

    def _log_slope(self, before: Array) -> Array:
        """The logarithm of the derivative of tanh."""
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x)), which does not cancel for large |x|
        xp = _xp(self.mean)
        return 2 * (log(2.0) - before - xp.logaddexp(-2 * before, xp.zeros_like(before)))

    def log_half(self) -> Array:
        """The logarithm of half the range, which tanh is multiplied by."""
        xp = _xp(self.mean)
        return xp.log(xp.asarray((self.high - self.low) / 2, xp.float32))

    def _log_stretch(self, before: Array) -> Array:
        """The logarithm of the derivative of `_stretched`, summed over the last axis."""
        return (self._log_slope(before) + self.log_half()).sum(-1)

    def sample(self, noise: Array) -> Array:
        return self._stretched(self.base().sample(noise))

    def before(self, action: Array) -> Array:
        """What tanh and the stretch made `action` of."""
        xp = _xp(self.mean)
        limit = 1 - 1e-6  # an action of exactly 1 in float32 has no finite pre-image
        unit = (action - (self.high + self.low) / 2) / ((self.high - self.low) / 2)
        return xp.arctanh(xp.clip(unit, -limit, limit))

    def log_prob(self, action: Array) -> Array:
        before = self.before(action)
        return self.base().log_prob(before) - self._log_stretch(before)

    def sample_and_log_prob(self, noise: Array) -> tuple[Array, Array]:
        """(action, its log_prob), the latter from the sample before tanh: right where float32 rounds tanh to 1."""
        before = self.base().sample(noise)
        # (before - mean) / std is the noise, so no difference of near numbers is taken
        log_prob = (-0.5 * noise * noise - self.log_std - 0.5 * log(2 * pi)).sum(-1)
        return self._stretched(before), log_prob - self._log_stretch(before)

    def mode(self) -> Array:
        return self._stretched(self.mean)

    def entropy(self) -> Array:
        """That of the normal and the mean of the stretch, which has no closed form and is a weighted sum here.

        It is off by less than 2e-4 nats a dimension for standard deviations up to 1.6, and 5e-3 up to 2.7. Unlike a
        sample's -log_prob it is not random, and its gradient is that of the sum. That of the normal alone would not do:
        it grows with the deviation, where tanh presses all actions against their bounds.
        """
        xp = _xp(self.mean)
        nodes, weights = (xp.asarray(x).reshape(-1, *(1,) * self.mean.ndim) for x in (NODES, WEIGHTS))
        slope = weights * self._log_slope(self.mean[None] + xp.exp(self.log_std)[None] * nodes)
        return self.base().entropy() + (slope.sum(0) + self.log_half()).sum(-1)

    def kl(self, other: TanhNormal) -> Array:
        """KL(self || other): tanh is one to one, so it is that of the normals."""
        return self.base().kl(other.base())


LOG_STD = (-5.0, 2.0)  # of a tanh_normal
EVEN = log(pi / sqrt(12))  # log_std at which tanh of a normal around 0 is nearest to uniform: 0.014 nats from it


def gaussian(outputs: Array) -> tuple[Array, Array]:
    """Network outputs [..., 2 * dims] as (mean, log_std); tanh keeps the latter within LOG_STD, with a gradient."""
    xp = _xp(outputs)
    dims, (least, most) = outputs.shape[-1] // 2, LOG_STD
    return outputs[..., :dims], least + 0.5 * (most - least) * (xp.tanh(outputs[..., dims:]) + 1)


def _bounds(like: Array, knobs: dict) -> list[Array]:
    """`low` and `high` of the knobs, [dims], in the shape of `like`, [..., dims]."""
    xp = _xp(like)
    return [xp.broadcast_to(xp.asarray(knobs[name], xp.float32), like.shape) for name in ("low", "high")]


def tanh_normal(outputs: Array, knobs: dict) -> TanhNormal:
    """The `head` of SAC; knobs holds `low`, `high`, and `random`: with 1, actions are all but uniform."""
    mean, log_std = gaussian(outputs)
    random = _xp(outputs).asarray(knobs["random"], np.float32)
    return TanhNormal((1 - random) * mean, log_std + random * (EVEN - log_std), *_bounds(mean, knobs))


def squashed_normal(outputs: Array, knobs: dict) -> TanhNormal:
    """The `head` of policy gradients within bounds: the network gives means before tanh; knobs holds `low`, `high` and,
    of before tanh, `log_std`: [dims] each.
    """
    xp = _xp(outputs)
    log_std = xp.broadcast_to(xp.asarray(knobs["log_std"], xp.float32), outputs.shape)
    return TanhNormal(outputs, log_std, *_bounds(outputs, knobs))


def _log_cdf(x: Array) -> Array:
    """The logarithm of the standard normal's cumulative distribution."""
    if _xp(x) is not np:
        from jax.scipy.special import log_ndtr

        return log_ndtr(x)
    below = np.vectorize(lambda y: erfc(-y / sqrt(2)) / 2, otypes=[np.float64])(x)
    return np.log(np.maximum(below, 1e-300)).astype(np.float32)


class ClippedNormal(NamedTuple):
    """Independent normals clipped to [low, high]: what lies beyond a bound lies on it.

    `log_prob` sums, over the last axis, a density inside the bounds and the logarithm of a probability on them.
    """

    mean: Array  # [..., dims], within the bounds
    std: Array  # each as `mean`
    low: Array
    high: Array
    noise = "normal"

    def base(self) -> Normal:
        xp = _xp(self.mean)
        return Normal(self.mean, xp.log(xp.maximum(self.std, np.float32(1e-6))))  # 0 stands for the mean alone

    def noise_shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def sample(self, noise: Array) -> Array:
        return _xp(self.mean).clip(self.mean + self.std * noise, self.low, self.high)

    def log_prob(self, action: Array) -> Array:
        xp, (mean, log_std) = _xp(self.mean), self.base()
        std = xp.exp(log_std)
        z = (action - mean) / std
        inside = -0.5 * z * z - log_std - 0.5 * log(2 * pi)
        on_high = xp.where(action >= self.high, _log_cdf((mean - self.high) / std), inside)
        return xp.where(action <= self.low, _log_cdf((self.low - mean) / std), on_high).sum(-1)

    def mode(self) -> Array:
        return self.mean

    def kl(self, other: ClippedNormal) -> Array:
        """The KL(self || other) of the normals before they are clipped: a bound from above."""
        return self.base().kl(other.base())


WIDE = 0.6  # standard deviation of random actions, in half ranges: one in ten is then on a bound


def clipped_normal(outputs: Array, knobs: dict) -> ClippedNormal:
    """The `head` of deterministic policies: tanh of the outputs and normal noise of `noise` half ranges, clipped.

    knobs holds `low`, `high`, `noise`, and `random`: with 1, actions do not depend on the outputs and are far spread.
    """
    xp = _xp(outputs)
    low, high = _bounds(outputs, knobs)
    random, noise = (xp.asarray(knobs[name], np.float32) for name in ("random", "noise"))
    half = (high - low) / 2
    mean = xp.clip((high + low) / 2 + half * ((1 - random) * xp.tanh(outputs)), low, high)
    return ClippedNormal(mean, half * (noise + random * (WIDE - noise)), low, high)


def categorical(outputs: Array, knobs: dict) -> Categorical:
    """The `head` of agents whose network gives logits; it needs no knobs."""
    return Categorical(outputs)


Dist = EpsilonGreedy | Categorical | Normal | TanhNormal | ClippedNormal


def _categorical_kl(p: Array, q: Array) -> Array:
    xp = _xp(p)
    tiny = np.float32(1e-38)
    ratio = xp.log(xp.maximum(p, tiny)) - xp.log(xp.maximum(q, tiny))
    return xp.where(p > 0, p * ratio, xp.zeros_like(p)).sum(-1)
