"""Distributions give the same numbers on NumPy and JAX, sample what they say, and agree with SciPy."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from frugalrl.distributions import Categorical, Dist, EpsilonGreedy, Normal, TanhNormal, draw, epsilon_greedy

KINDS = (EpsilonGreedy, Categorical, Normal, TanhNormal)
DISCRETE = (EpsilonGreedy, Categorical)
LEADS = ((), (7,), (3, 5))


def example(kind: type, lead: tuple[int, ...] = (), seed: int = 0) -> Dist:
    """A distribution with 4 actions or 3 dimensions."""
    r = np.random.default_rng(seed)
    if kind is EpsilonGreedy:
        return EpsilonGreedy(r.standard_normal((*lead, 4), np.float32), np.float32(0.1 + 0.2 * seed))
    if kind is Categorical:
        return Categorical(2 * r.standard_normal((*lead, 4), np.float32))
    return kind(r.standard_normal((*lead, 3), np.float32), 0.5 * r.standard_normal((*lead, 3), np.float32) - 0.5)


def on_jax(dist: Dist) -> Dist:
    return jax.tree.map(jnp.asarray, dist)


def numbers(dist: Dist, other: Dist, noise) -> dict:
    """Everything a distribution can be asked."""
    action = dist.sample(noise)
    asked = {"sample": action, "log_prob": dist.log_prob(action), "mode": dist.mode(), "kl": dist.kl(other)}
    for name in ("probs", "entropy"):
        if hasattr(dist, name):
            asked[name] = getattr(dist, name)()
    return asked


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_jax_give_the_same_numbers(kind, lead):
    dist, other = example(kind, lead), example(kind, lead, seed=1)
    noise = draw(dist, np.random.default_rng(2))
    assert (noise.shape, noise.dtype) == (dist.noise_shape(), np.float32)
    expected = numbers(dist, other, noise)
    got = numbers(on_jax(dist), on_jax(other), jnp.asarray(noise))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert not isinstance(value, jax.Array), name
        assert isinstance(got[name], jax.Array), name
        assert got[name].shape == np.shape(value), name
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_actions_and_densities_are_32_bits(kind):
    for dist in (example(kind, (7,)), on_jax(example(kind, (7,)))):
        action = dist.sample(dist.values * 0 if False else draw_any(dist))
        assert action.dtype == dist.mode().dtype == (np.int32 if kind in DISCRETE else np.float32)
        assert dist.log_prob(action).dtype == np.float32


def draw_any(dist: Dist):
    rng = np.random.default_rng(0) if isinstance(dist[0], np.ndarray) else jax.random.key(0)
    return draw(dist, rng)
